"""`python -m lightning_dpo.report DIR`: a page about the runs below a folder, a table of them, the plots as files."""

import argparse
from pathlib import Path

from lightning_dpo.console import exit_codes


def main() -> None:
    parser = argparse.ArgumentParser("python -m lightning_dpo.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="a run's folder, a sweep's, or any that holds some")
    parser.add_argument("--score", help="which of the scorer's numbers the frontier shows (default: reward)")
    args = parser.parse_args()
    from lightning_dpo.report import page, terminal

    with exit_codes(OSError):
        written = page.write(args.folder, args.score)
        terminal.show(args.folder)
        print(f"report     {written}")


if __name__ == "__main__":
    main()
