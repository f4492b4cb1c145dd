"""A set of pairs and an order -> batches, limited by pairs and optionally by tokens."""

import signal
from collections.abc import Sequence
from functools import partial
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader

from lightning_dpo.batch import PairBatch
from lightning_dpo.data.sampler import EpochSampler, TokenBatches
from lightning_dpo.data.sets import PairSet
from lightning_dpo.errors import ConfigError, DataError


def loader(
    pairs: PairSet, order: EpochSampler, batch_size: int, max_tokens: int | None, num_workers: int, batches_taken: int
) -> DataLoader:
    """Batches of the pairs in this order. Its first iteration skips `order.start` pairs, or with `max_tokens` the
    batches that were taken.

    Errors: DataError for a pair of more than `max_tokens` tokens.
    """
    options: dict[str, Any] = {"batch_size": batch_size, "sampler": order}
    if max_tokens is not None:
        batches = TokenBatches(order, _fitting(pairs, max_tokens), max_tokens, batch_size)
        batches.start, options = batches_taken, {"batch_sampler": batches}
    return DataLoader(
        range(len(pairs)),  # type: ignore[arg-type]
        **options,
        collate_fn=partial(_collate, pairs),
        num_workers=num_workers,
        worker_init_fn=leave_signals_to_the_run,
        generator=torch.Generator(),  # worker seeds must not advance the run's generator
        persistent_workers=num_workers > 0,
    )


def leave_signals_to_the_run(worker: int) -> None:
    """Ignore Ctrl-C and the first SIGTERM, which a cluster sends to all processes of a run.

    The run needs batches until it has saved, and then ends its workers itself. That may take a SIGTERM, so a second
    one is obeyed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


def check_trainer(trainer: L.Trainer) -> None:
    """Errors: ConfigError for settings with which these loaders would give other batches, or resume elsewhere."""
    if trainer.overfit_batches:  # type: ignore[attr-defined]
        reason = "it replaces the order of the data; use limit_train_batches and shuffle=False"
        raise ConfigError(f"trainer.overfit_batches={trainer.overfit_batches}: {reason}")  # type: ignore[attr-defined]
    if not isinstance(trainer.strategy, SingleDeviceStrategy):  # the others replace the sampler too
        raise ConfigError(f"trainer.strategy={type(trainer.strategy).__name__}: one device is supported so far")


def default_workers() -> int:
    """Two with a GPU. On a CPU, workers would take cores from the training step."""
    return 2 if torch.cuda.is_available() else 0


def _collate(pairs: PairSet, positions: Sequence[int]) -> PairBatch:
    batch = pairs.select(positions)
    _ = batch.sharing  # computed now, while the ids are on the CPU, and in a worker if there is one
    return batch


def _fitting(pairs: PairSet, max_tokens: int) -> np.ndarray:
    tokens = pairs.tokens()
    longest = int(tokens.argmax())
    if (most := int(tokens[longest])) > max_tokens:
        raise DataError(
            f"data.max_tokens={max_tokens}: {pairs.where(longest)} has {most} tokens in prompt, chosen and rejected; "
            f"type data.max_tokens={most}, or truncate with data.max_length"
        )
    return tokens
