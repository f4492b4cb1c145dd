"""A table of finished runs: `python -m lightning_dpo.compare FOLDER`, any folder that holds runs.

A sweep prints the same table at its end and leaves it as summary.csv.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

COLUMNS = {
    "accuracy": "val/rewards/accuracies",
    "margin": "",
    "chosen": "",
    "rejected": "",
    "KL": "val/kl",
    "reward": "val/samples/reward",
    "valid": "val/samples/valid",
}
"""Held-out metrics at the end of a run. `chosen` and `rejected` are the changes of the mean log-probability since the
run's start and `margin` is their difference, in nats, so that losses and betas compare."""


def rows(folder: Path) -> list[dict[str, Any]]:
    """One row per finished run (a summary.json) below a folder, by path; a column that no run has is left out."""
    found: list[dict[str, Any]] = []
    for path in sorted(folder.rglob("summary.json"), key=_numbered):
        summary = json.loads(path.read_text(encoding="utf-8"))
        start, end = summary["metrics_at_start"], summary["metrics"]
        beta = OmegaConf.select(OmegaConf.load(path.with_name("config.yaml")), "beta")
        row: dict[str, Any] = {"run": path.parent.relative_to(folder).as_posix(), "beta": beta}
        row |= {column: end.get(name) for column, name in COLUMNS.items()}
        if "val/logps/rejected" in start:
            chosen, rejected = (end[name] - start[name] for name in ("val/logps/chosen", "val/logps/rejected"))
            row |= {"margin": chosen - rejected, "chosen": chosen, "rejected": rejected}
        found.append(row)
    return [{k: v for k, v in row.items() if any(r[k] is not None for r in found)} for row in found]


def show(table: list[dict[str, Any]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    title = "held out, at the end of each run; margin, chosen, rejected: nats since its start"
    printed = Table(*table[0], title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for row, name in zip(table, _short([row["run"] for row in table]), strict=True):
        printed.add_row(name, *("" if v is None else f"{v:.3g}" for k, v in row.items() if k != "run"))
    Console(highlight=False, markup=False).print(printed)


def _short(names: list[str]) -> list[str]:
    """Folder names without the overrides that all jobs of a sweep share.

    >>> _short(["0-loggercsv-lossdpo", "1-loggercsv-lossipo"])
    ['0-lossdpo', '1-lossipo']
    """
    parts = [name.split("-") for name in names]
    return ["-".join(p for p in own if len(names) == 1 or not all(p in other for other in parts)) for own in parts]


def _numbered(path: Path) -> list[tuple[int, str]]:
    """Sorts 10-... after 9-...: a sweep's folders begin with the number of the job."""
    return [(int(n) if (n := part.split("-")[0]).isdigit() else 0, part) for part in path.parts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    table = rows(folder)
    if not table:
        print(f"error: {folder}: no finished run (summary.json) below it", file=sys.stderr)
        sys.exit(2)
    show(table)


if __name__ == "__main__":
    main()
