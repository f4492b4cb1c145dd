"""The logger that every run has: metrics.csv."""

import csv
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lightning_dpo.files import LineFile


class MetricsCSV(Logger):
    """metrics.csv: one row per optimizer step (`train/...`) and one per validation (`val/...`).

    `step` is the number of optimizer steps done. A cell is empty if its row has no such value. Lightning's own CSV
    logger deletes its file when a run resumes in the same folder, and keeps every row in memory.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.file = LineFile(folder / "metrics.csv")
        self.path = self.file.path
        self.columns: list[str] = ["step"]
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._note(metrics)
        if new := [name for name in metrics if name not in self.columns]:
            self._widen(new)
        line = StringIO()
        csv.DictWriter(line, self.columns).writerow({"step": step, **metrics})
        self.file.append([line.getvalue()])

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: they are in config.yaml."""

    def state_dict(self) -> dict[str, Any]:
        return {"rows": max(0, self.file.lines - 1), "first": self.first}  # without the header

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Remove later rows; a missing file starts with the next one. Errors: ValueError if rows are missing."""
        self.first = dict(state_dict["first"])
        self.file.cut(state_dict["rows"] + 1 if state_dict["rows"] else 0)
        for row in self._rows():
            self.columns = list(row)
            self._note({name: float(cell) for name, cell in row.items() if cell and name != "step"})

    def _note(self, values: Mapping[str, float]) -> None:
        self.first = {**values, **self.first}
        self.last.update(values)
        if "val/loss" in values:  # drop what an earlier validation measured on its completions
            sampled = ("val/kl", "val/samples/")
            self.last = {k: v for k, v in self.last.items() if k in values or not k.startswith(sampled)}

    def _rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with open(self.path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def _widen(self, new: list[str]) -> None:
        """Rewrite the file with further columns."""
        rows = self._rows()
        self.columns += new
        wider = self.path.with_suffix(".tmp")
        with open(wider, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
        wider.replace(self.path)
        self.file = LineFile(self.path)
