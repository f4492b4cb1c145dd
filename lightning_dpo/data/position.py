"""The position of training in the data, which checkpoints keep."""

from collections.abc import Mapping
from math import ceil
from typing import Any, NamedTuple

import lightning as L

from lightning_dpo.batch import PairBatch
from lightning_dpo.errors import DataError


class Limits(NamedTuple):
    """What decides which pairs share a batch."""

    batch_size: int
    max_tokens: int | None


class Position(NamedTuple):
    """An epoch, the batches and pairs that training has taken in it, and for a stream the rows that it has used."""

    epoch: int = 0
    batches: int = 0
    pairs: int = 0
    rows_used: int = 0

    def after(self, batch: PairBatch, epoch: int, last: bool) -> "Position":
        """The position after a batch of this epoch, the last one or not."""
        if last:
            return Position(epoch + 1)
        before = self if epoch == self.epoch else Position()
        return Position(epoch, before.batches + 1, before.pairs + len(batch), batch.rows_used)

    @classmethod
    def restored(cls, state: Mapping[str, Any], limits: Limits, pairs_per_epoch: int | None) -> "Position":
        """The position of a checkpoint. With another batch size it is at the same pair.

        Args:
            pairs_per_epoch: None for a stream.

        Errors: DataError within an epoch of other token batches.
        """
        batches, saved = state["batches"], Limits(*state.get("limits", limits))
        pairs = state.get("pairs", batches * limits.batch_size)  # 0.1.0 saved neither limits nor pairs
        if batches and saved != limits:
            if saved.max_tokens or limits.max_tokens:
                raise DataError(
                    f"the checkpoint is within an epoch of batches with data.batch_size={saved.batch_size} and "
                    f"data.max_tokens={saved.max_tokens}; other limits make other batches, so set these two"
                )
            if pairs_per_epoch is not None:
                left = ceil((pairs_per_epoch - pairs) / limits.batch_size)
                batches = ceil(pairs_per_epoch / limits.batch_size) - left
        return cls(state["epoch"], batches, pairs, state["rows_used"])

    def count_batches(self, trainer: L.Trainer) -> None:
        """Tell Lightning how many batches of this epoch are done; a checkpoint counts those of its own batch size."""
        done = trainer.fit_loop.epoch_loop.batch_progress.current
        shift = self.batches - done.ready if self.pairs else 0
        for name in ("ready", "started", "processed", "completed"):
            setattr(done, name, getattr(done, name) + shift)
