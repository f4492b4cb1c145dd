"""From a set of pairs and an order to batches: by number of pairs, or by number of tokens."""

import signal
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from lightning_dpo.batch import PairBatch
from lightning_dpo.data.sampler import EpochSampler, TokenBatches
from lightning_dpo.data.sets import PairSet
from lightning_dpo.errors import DataError


def loader(
    pairs: PairSet, order: EpochSampler, batch_size: int, max_tokens: int | None, num_workers: int, taken: int
) -> DataLoader:
    """Batches of the pairs in this order, but for the first ones of the epoch that were `taken` before.

    Errors: DataError for a pair of more than `max_tokens` tokens.
    """
    options: dict[str, Any] = {"batch_size": batch_size, "sampler": order}
    order.start = taken * batch_size
    if max_tokens is not None:
        batches = TokenBatches(order, _fitting(pairs, max_tokens), max_tokens, batch_size)
        batches.start, options = taken, {"batch_sampler": batches}
    return DataLoader(
        range(len(pairs)),  # type: ignore[arg-type]
        **options,
        collate_fn=partial(_collate, pairs),
        num_workers=num_workers,
        worker_init_fn=leave_signals_to_the_run,
        generator=torch.Generator(),  # a loader draws seeds for its workers: not from the run's generator
        persistent_workers=num_workers > 0,
    )


def leave_signals_to_the_run(worker: int) -> None:
    """Ctrl-C and a cluster's SIGTERM reach all processes of a run, which wants its batches until it is saved and then
    ends its workers itself: by a SIGTERM at the worst, so a second one is obeyed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


def default_workers() -> int:
    """A GPU waits for nobody; a CPU has no better use for its cores than the step itself."""
    return 2 if torch.cuda.is_available() else 0


def _collate(pairs: PairSet, positions: Sequence[int]) -> PairBatch:
    batch = pairs.select(positions)
    _ = batch.sharing  # found here, where the ids are on the CPU, and by a worker if there is one
    return batch


def _fitting(pairs: PairSet, max_tokens: int) -> np.ndarray:
    tokens = pairs.tokens()
    longest = int(tokens.argmax())
    if (most := int(tokens[longest])) > max_tokens:
        raise DataError(
            f"data.max_tokens={max_tokens}: {pairs.where(longest)} has {most} tokens in prompt, chosen and rejected; "
            f"type data.max_tokens={most}, or cut with data.max_length"
        )
    return tokens
