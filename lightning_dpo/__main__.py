"""`lightning-dpo COMMAND ...`, the same as `python -m lightning_dpo.COMMAND ...`."""

import os
import runpy
import sys

COMMANDS = {
    "train": "train a policy on preference pairs",
    "report": "a page, a table and plots about runs",
    "benchmark": "what a step costs",
    "dashboard": "a W&B workspace for the runs",
}


def main() -> None:
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in COMMANDS:
        sys.argv = [f"lightning-dpo {command}", *sys.argv[2:]]
        sys.path.insert(0, os.getcwd())  # as `python -m` does, for losses and scorers of one's own
        runpy.run_module(f"lightning_dpo.{command}", run_name="__main__")
        return
    usage = "\n".join(f"  {name:10} {what}" for name, what in COMMANDS.items())
    print(f"usage: lightning-dpo COMMAND ...\n\n{usage}\n\nType lightning-dpo COMMAND --help for more")
    if command not in ("--help", "-h"):
        print(f"\nerror: unknown command {command!r}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
