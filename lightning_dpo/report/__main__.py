"""`python -m lightning_dpo.report DIR`: write a page, a table and plots about the runs below a folder."""

import argparse
from pathlib import Path

from lightning_dpo.console import exit_codes


def main() -> None:
    parser = argparse.ArgumentParser("python -m lightning_dpo.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of a run, of a sweep, or above several of them")
    parser.add_argument("--score", help="the scorer's number that the frontier shows (default: reward)")
    args = parser.parse_args()
    from lightning_dpo.report import page, terminal

    with exit_codes(OSError):
        written = page.write(args.folder, args.score)
        terminal.show(args.folder)
        print(f"report     {written}")


if __name__ == "__main__":
    main()
