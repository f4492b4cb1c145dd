"""When a run is saved, and what a resumed run restores so that it ends as if it had never stopped."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.trainer.states import TrainerFn

from lightning_dpo import nonfinite
from lightning_dpo.callbacks.best import Best
from lightning_dpo.errors import ConfigError, OutOfTime
from lightning_dpo.files import LineFile, fsync
from lightning_dpo.loggers.metrics_csv import MetricsCSV
from lightning_dpo.module import DPOModule
from lightning_dpo.run.checkpoint import LAST
from lightning_dpo.run.identity import differences
from lightning_dpo.run.resume import (
    begin_epoch,
    is_within_step,
    resume_plateau,
    rng_state,
    set_rng_state,
    validates_now,
    watched,
)
from lightning_dpo.run.signals import Stop

ENDING = 1.0
"""Seconds that a run takes to exit after it has saved."""


class Saving(L.Callback):
    """Saves `checkpoints/last.ckpt` between optimizer steps. Must be the last callback, as it saves the others' states.

    | where a step ends         | saved in               | resuming must undo (more in docs/design/resume.md)          |
    |---------------------------|------------------------|-------------------------------------------------------------|
    | inside an epoch           | `on_train_batch_end`   | rows logged later (`MetricsCSV.load_state_dict`)            |
    | before a validation       | `on_validation_end`    | the same; the validation is not repeated                    |
    | at the end of an epoch    | `on_train_epoch_start` | also Lightning's own position in its loops (`begin_epoch`)  |
    | at the end of training    | `on_train_end`         | the same; after an early stop, `should_stop` is set again   |
    | at max_steps, in an epoch | `on_train_end`         | nothing: DPOModule saves that epoch as unfinished           |

    Args:
        every_n_steps: optimizer steps between two checkpoints.
        metrics: its row count goes into the checkpoint.
        metadata: plain values to compare a resumed run with; stored in the checkpoint as `run`.
        stop: holds the pending signal, which takes effect after saving.
        max_time: the run is saved and ends before it, in Lightning's notation (`00:11:30:00`); counted from `began`.
        began: when the command began, on the clock `time.monotonic`.
    """

    def __init__(
        self,
        folder: Path,
        every_n_steps: int,
        metrics: MetricsCSV,
        metadata: Mapping[str, Any],
        stop: Stop,
        max_time: Any = None,
        began: float = 0.0,
    ):
        self.folder, self.every, self.metrics, self.metadata, self.stop = folder, every_n_steps, metrics, metadata, stop
        self.end = None if max_time is None else began + (Timer(max_time).time_remaining() or 0.0)
        self.seconds = 0.0
        """How long the last save took."""
        self.saved = 0
        self._rng: dict[str, Any] | None = None
        self._epochs: int | None = None
        """Complete epochs, between two epochs; None inside one."""
        self._ended_early = self._ended_within = self._another = False
        self._boundary, self._longest = time.monotonic(), 0.0
        self._plateau: dict[str, Any] | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in pl_module.policy.parameters()]
        weights, moments = sum(size for size, _ in sizes), 2 * sum(size for size, trained in sizes if trained)
        # Two checkpoints, a third while it is written, and the exported model.
        best = 2 * weights * any(isinstance(callback, Best) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        existing = sum(path.stat().st_size for path in (self.folder / "checkpoints").glob("*.ckpt"))
        need, free = 3 * (weights + moments) + weights + best - existing, shutil.disk_usage(self.folder).free
        if free < need:
            raise ConfigError(
                f"{self.folder}: {free / 1e9:.3g} GB are free; checkpoints (weights and moments) and the model need "
                f"{need / 1e9:.3g} GB; free some space, or type output_dir=... on another disk"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._rng is not None:
            set_rng_state(self._rng)
        if self._epochs is not None:
            begin_epoch(trainer, self._epochs)
        if self._plateau is not None:
            resume_plateau(trainer, **self._plateau)
        trainer.should_stop = trainer.should_stop or (self._ended_early and not self._another)
        self.saved, self._boundary = trainer.global_step, time.monotonic()
        self.stop.wait_for_step(True)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._epochs = trainer.current_epoch
        self._between_steps(trainer, pl_module)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self._epochs = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        if not trainer.is_last_batch and not validates_now(trainer):
            self._between_steps(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.is_last_batch:
            self._between_steps(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._ended_within = not trainer.is_last_batch
        self._epochs = None if self._ended_within else trainer.current_epoch
        self._ended_early = trainer.should_stop
        self._between_steps(trainer, pl_module)
        self.stop.wait_for_step(False)

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        pl_module.ledger.write(trainer)

    def _between_steps(self, trainer: L.Trainer, module: DPOModule) -> None:
        if is_within_step(trainer):
            return  # no checkpoint holds the gradients of half a step
        now = time.monotonic()
        self._longest, self._boundary = max(self._longest, now - self._boundary), now
        over = self.end is not None and now + 2 * (self._longest + self.seconds) + ENDING > self.end
        due = trainer.global_step - self.saved >= self.every
        untimed = self.end is not None and self.seconds == 0.0  # save once to learn how long it takes
        if over or due or untimed or self.stop.number is not None:
            self.save(trainer, module)
        if self.stop.number is not None:
            self.stop.leave(self.stop.number)
        if over:
            raise OutOfTime(f"trainer.max_time is over at step {trainer.global_step}; the run is saved, not finished")

    def save(self, trainer: L.Trainer, module: DPOModule) -> None:
        """Write all pending rows, then the checkpoint. Errors: OSError with the path."""
        began = time.monotonic()
        self._ended_early = trainer.should_stop
        module.ledger.write(trainer)
        for name in ("metrics.csv", "samples.jsonl", nonfinite.FILE):
            if (self.folder / name).exists():
                fsync(self.folder / name)
        trainer.save_checkpoint(self.folder / "checkpoints" / LAST)
        self.saved, self.seconds = trainer.global_step, time.monotonic() - began
        self._boundary = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        lines = LineFile(self.folder / nonfinite.FILE).lines
        state = {"rng": rng_state(), "metrics": self.metrics.state_dict(), "nonfinite": lines}
        return {**state, "epochs": self._epochs, "ended_early": self._ended_early}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Set when training starts, because building loaders and models draws random numbers.
        self._rng = state_dict["rng"]
        self._epochs, self._ended_early = state_dict["epochs"], state_dict["ended_early"]
        self.metrics.load_state_dict(state_dict["metrics"])
        LineFile(self.folder / nonfinite.FILE).cut(state_dict["nonfinite"])

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        previous, current = checkpoint["run"]["config"], self.metadata["config"]
        self._another = bool(differences(previous, current))
        self._plateau = checkpoint.get("plateau")
        if _callbacks(previous) != _callbacks(current):
            # Lightning's callbacks save their settings (patience, monitor), and would restore the old ones.
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if not type(callback).__module__.startswith("lightning_dpo."):
                    checkpoint["callbacks"].pop(callback.state_key, None)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["run"] = dict(self.metadata)
        if any(config.reduce_on_plateau for config in trainer.lr_scheduler_configs):
            ended = self._epochs is not None or self._ended_within or validates_now(trainer)
            checkpoint["plateau"] = {"metrics": watched(trainer), "due": not ended}


def _callbacks(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key.startswith("callbacks.")}
