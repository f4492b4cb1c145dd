"""`python -m lightning_dpo.report DIR`: a page about the runs below a folder, a table of them, the plots as files."""

import argparse
import sys
from pathlib import Path


def write(folder: Path, score: str | None = None) -> Path:
    """Write `report.html`, `summary.csv` and `plots/` into a folder of runs, or into a run's own; returns the page.

    Args:
        score: which of the scorer's numbers is the frontier's; `reward`, or else the first.

    Errors: ConfigError where there is no run, or no such score.
    """
    from lightning_dpo.report.page import write as write_page

    return write_page(folder, score)


def main() -> None:
    parser = argparse.ArgumentParser("python -m lightning_dpo.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="a run's folder, a sweep's, or any that holds some")
    parser.add_argument("--score", help="which of the scorer's numbers the frontier shows (default: reward)")
    args = parser.parse_args()
    from lightning_dpo.errors import ConfigError
    from lightning_dpo.report import terminal

    try:
        page = write(args.folder, args.score)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    terminal.show(args.folder)
    print(f"report     {page}")
