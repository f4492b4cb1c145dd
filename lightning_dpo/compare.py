"""A table of finished runs: `python -m lightning_dpo.compare FOLDER`, any folder that holds runs.

A sweep prints the same table at its end and leaves it as summary.csv.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

COLUMNS = {
    "accuracy": "val/rewards/accuracies",
    "margin, nats": "",
    "chosen, nats": "",
    "rejected, nats": "",
    "KL, nats": "val/kl",
    "reward": "val/samples/reward",
    "valid": "val/samples/valid",
}
"""Held-out metrics at the end of a run; the nats are changes of the mean log-probability since the run's start, so that
they compare between losses and betas. A column without a value in any run is left out."""


def rows(folder: Path) -> list[dict[str, Any]]:
    """One row per finished run (a summary.json) below a folder, in the order of their paths."""
    found = []
    for path in sorted(folder.rglob("summary.json"), key=_numbered):
        summary = json.loads(path.read_text(encoding="utf-8"))
        start, end = summary["metrics_at_start"], summary["metrics"]
        row = {column: end.get(name) for column, name in COLUMNS.items()}
        if "val/logps/chosen" in start:
            chosen, rejected = (
                end[f"val/logps/{side}"] - start[f"val/logps/{side}"] for side in ("chosen", "rejected")
            )
            row |= {"margin, nats": chosen - rejected, "chosen, nats": chosen, "rejected, nats": rejected}
        found.append({"run": path.parent.relative_to(folder).as_posix(), **row})
    return [{k: v for k, v in row.items() if any(r[k] is not None for r in found)} for row in found]


def show(table: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    printed = Table(*table[0], title="held out, at the end of each run")
    for row in table:
        cells = ("" if v is None else f"{v:.3f}" for k, v in row.items() if k != "run")
        printed.add_row(row["run"], *cells)
    Console(highlight=False, markup=False).print(printed)


class SweepTable(Callback):
    """Shows a sweep's runs at its end (`hydra.callbacks` in conf/train.yaml)."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        if table := rows(folder):
            import pandas as pd

            show(table)
            pd.DataFrame(table).to_csv(folder / "summary.csv", index=False)


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
