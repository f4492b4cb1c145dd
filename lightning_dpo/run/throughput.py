"""Pairs and tokens per second of training."""

import time
from typing import Any

import lightning as L

from lightning_dpo.batch import PairBatch

COUNTED = ("pairs", "tokens", "seconds", "validated_at")


class Throughput(L.Callback):
    """Counts pairs and tokens in training. A prompt counts once per pair; padding does not count."""

    def __init__(self):
        self.pairs = self.tokens = 0
        self.seconds = 0.0
        self.validated_at: int | None = None
        """Optimizer steps at the last validation."""

    def on_validation_end(self, trainer, pl_module) -> None:
        self.validated_at = trainer.global_step

    def on_train_batch_start(self, trainer, pl_module, batch: PairBatch, batch_idx: int) -> None:
        self._begin = time.monotonic()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch: PairBatch, batch_idx: int) -> None:
        self.seconds += time.monotonic() - self._begin
        self.pairs += len(batch)
        self.tokens += sum(len(side.values) for side in (batch.prompt, batch.chosen, batch.rejected))

    @property
    def state_key(self) -> str:
        return "Clock"  # its name in checkpoints of 0.1.0

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in COUNTED}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in COUNTED:
            setattr(self, name, state_dict[name])
