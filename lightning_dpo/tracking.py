"""Where logged numbers go: metrics.csv, W&B, and the counters of the summary."""

import csv
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import wandb
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from wandb.errors import AuthenticationError, CommError, UsageError

from lightning_dpo.batch import PairBatch
from lightning_dpo.errors import ConfigError
from lightning_dpo.files import keep_lines

log = logging.getLogger(__name__)

STEP = "trainer/global_step"
"""W&B's axis of all metrics, as Lightning's logger names it; metrics.csv calls it `step`."""

BEST = {"val/loss": "min", "val/rewards/accuracies": "max"}
"""Metrics whose best value W&B keeps in a run's summary, beside the last."""


class MetricsCSV(Logger):
    """metrics.csv: one row per optimizer step (`train/...`) and one per validation (`val/...`).

    `step` is the number of optimizer steps done. A cell is empty where a row has no such value. Lightning's own CSV
    logger deletes its file when a run goes on in the same folder, and keeps every row in memory.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.path = folder / "metrics.csv"
        self.columns: list[str] = ["step"]
        self.rows = 0
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
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow({"step": step, **metrics})
        self.rows += 1

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """config.yaml has them."""

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "first": self.first}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Cut off the rows that were written after this state.

        Errors: ValueError if rows are missing; a file that does not exist begins with the next row.
        """
        self.first = dict(state_dict["first"])
        if not self.path.exists():
            return
        self.rows = state_dict["rows"]
        keep_lines(self.path, self.rows + 1 if self.rows else 0)
        with open(self.path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            self.columns = list(reader.fieldnames or self.columns)
            for row in reader:
                values = {name: float(cell) for name, cell in row.items() if cell and name != "step"}
                self._note(values)

    def _note(self, values: Mapping[str, float]) -> None:
        self.first = {**values, **self.first}
        self.last.update(values)
        if "val/loss" in values:  # a validation without completions leaves those of an earlier one behind
            drawn = ("val/kl", "val/samples/")
            self.last = {k: v for k, v in self.last.items() if k in values or not k.startswith(drawn)}

    def _widen(self, new: list[str]) -> None:
        rows = []
        if self.path.exists():
            with open(self.path, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        self.columns += new
        wider = self.path.with_suffix(".tmp")
        with open(wider, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
        wider.replace(self.path)


COUNTED = ("pairs", "tokens", "seconds", "validated_at")


class Clock(L.Callback):
    """Counts pairs and tokens while training; a prompt counts once per pair, and padding not at all.

    `validated_at` is the number of optimizer steps at the last validation.
    """

    def __init__(self):
        self.pairs = self.tokens = 0
        self.seconds = 0.0
        self.validated_at: int | None = None

    def on_validation_end(self, trainer, pl_module) -> None:
        self.validated_at = trainer.global_step

    def on_train_batch_start(self, trainer, pl_module, batch: PairBatch, batch_idx: int) -> None:
        self._begin = time.monotonic()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch: PairBatch, batch_idx: int) -> None:
        self.seconds += time.monotonic() - self._begin
        self.pairs += len(batch)
        self.tokens += sum(len(side.values) for side in (batch.prompt, batch.chosen, batch.rejected))

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in COUNTED}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in COUNTED:
            setattr(self, name, state_dict[name])


def connect(build: Callable[..., Logger]) -> Logger:
    """A logger, W&B connected or, where that fails, offline: without a key or a network it would end the run."""
    logger = build()
    if isinstance(logger, WandbLogger):
        try:
            _start(logger)
        except (CommError, UsageError, AuthenticationError) as error:
            reason = str(error).splitlines()[0]
            print(f"W&B cannot go online ({reason}); logging offline, `wandb sync` uploads later", flush=True)
            log.warning("W&B offline: %s", reason)
            wandb.teardown()
            logger = build(mode="offline")
            _start(logger)  # type: ignore[arg-type]
    return logger


def _start(logger: WandbLogger) -> None:
    logger._wandb_init.pop("anonymous", None)  # Lightning hands on its None, and W&B warns of that at each run
    run = logger.experiment
    for name, best in BEST.items():
        # Without the step, this would take away the axis that Lightning has defined for all names.
        run.define_metric(name, step_metric=STEP, summary=f"last,{best}")


def online_entity() -> str:
    """The user's or team's name at W&B.

    Errors: ConfigError where W&B cannot be asked.
    """
    try:
        return wandb.Api(timeout=10).default_entity or ""
    except (CommError, UsageError, AuthenticationError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"W&B cannot be reached ({reason}); type wandb login, or --dry-run for the JSON") from None


def annotate(loggers: Iterable[Logger], name: str, text: str) -> None:
    """A text in the summary of the W&B run, where there is one; metrics.csv holds numbers only."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary[name] = text


@contextmanager
def closing() -> Iterator[None]:
    """The W&B run ends with the block, as finished or as failed: a later logger of the process would go on in it."""
    failed = 1
    try:
        yield
        failed = 0
    finally:
        if wandb.run is not None:
            wandb.finish(exit_code=failed)
