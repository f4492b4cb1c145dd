"""The weights of the best validation, which are then exported in place of the last ones."""

from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning as L

from lightning_dpo.errors import ConfigError, NonFiniteError
from lightning_dpo.run.checkpoint import read

LOWER = ("loss", "kl", "kl_se")
"""Ends of the names of metrics of which less is better."""


class Best(L.Callback):
    """Saves the policy in `checkpoints/best-STEP.ckpt` after each validation that is better than all before, the one
    before training included. Must precede `Saving`, which saves its state.

    Args:
        folder: the run's folder.
        best: name of the metric, such as val/rewards/accuracies.
        mode: which values are better; auto: smaller ones of a loss or a KL, larger ones of all others.
        every_n_steps: of the checkpoints, see Saving.
    """

    def __init__(
        self,
        folder: Path,
        best: str,
        mode: Literal["auto", "min", "max"] = "auto",
        every_n_steps: Annotated[int, "[1, inf)"] = 25,
    ):
        lower = best.endswith(LOWER)
        self.folder, self.name = folder / "checkpoints", best
        self.mode = ("min" if lower else "max") if mode == "auto" else mode
        self.step: int | None = None
        self.metrics: dict[str, float] = {}
        """Of the best validation, by name."""
        self._needed: list[int] = []
        """Steps whose files the last two checkpoints of the run refer to."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        if self.name not in metrics:
            known = ", ".join(sorted(metrics))
            raise ConfigError(f"checkpoint.best={self.name}: this run does not measure it; allowed: {known}")
        value, best = metrics[self.name], self.metrics.get(self.name, inf if self.mode == "min" else -inf)
        if value < best if self.mode == "min" else value > best:  # NaN is never better
            self.step, self.metrics = trainer.global_step, metrics
            trainer.save_checkpoint(self.path, weights_only=True)

    @property
    def path(self) -> Path:
        return self.folder / f"best-{self.step}.ckpt"

    def load_into(self, module: L.LightningModule) -> None:
        """Give the module the weights of the best validation. Errors: NonFiniteError if none gave a number."""
        if self.step is None:
            raise NonFiniteError(f"checkpoint.best={self.name}: no validation gave a finite number")
        module.load_state_dict(read(self.path)["state_dict"], strict=False)  # the reference's are not in the file

    def state_dict(self) -> dict[str, Any]:
        return {"name": self.name, "mode": self.mode, "step": self.step, "metrics": self.metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if (state_dict["name"], state_dict["mode"]) == (self.name, self.mode):
            self.step, self.metrics = state_dict["step"], dict(state_dict["metrics"])
            self._needed = [] if self.step is None else [self.step]

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remove files that neither this checkpoint nor the one before it refers to."""
        self._needed = [*self._needed[-1:], *([] if self.step is None else [self.step])]
        for path in self.folder.glob("best-*.ckpt"):
            if path.name not in [f"best-{step}.ckpt" for step in self._needed]:
                path.unlink()
