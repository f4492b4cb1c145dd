"""The order of an epoch, and batches by tokens."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler


class EpochSampler(Sampler[int]):
    """Positions in a set, in an order that is a function of seed and epoch; Lightning tells the epoch.

    Each source gives `round(weight x its pairs)` positions an epoch, at least one if it has pairs: they continue an
    endless row of passes over the source, each in its own random order, so that a weight of 1/2 sees every pair once in
    two epochs.

    Args:
        sizes: pairs of each source in the set. weights: passes per epoch.
        shuffle: False keeps the order of the sources and of the rows that an epoch takes.
        start: positions to leave out at the beginning of the next iteration, for a run that goes on.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int, shuffle: bool):
        self.sizes, self.seed, self.shuffle, self.epoch, self.start = list(sizes), seed, shuffle, 0, 0
        self.counts = [size and max(1, round(size * weight)) for size, weight in zip(sizes, weights, strict=True)]

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(self.counts)

    def __iter__(self) -> Iterator[int]:
        rows, self.start = self.positions()[self.start :], 0
        for piece in rows.split(1 << 14):
            yield from piece.tolist()

    def positions(self) -> Tensor:
        parts, offset = [], 0
        for source, (size, count) in enumerate(zip(self.sizes, self.counts, strict=True)):
            parts += [part + offset for part in self._passes(source, size, count)]
            offset += size
        rows = torch.cat(parts)
        if not self.shuffle:
            return rows
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return rows[torch.randperm(len(rows), generator=generator)]

    def _passes(self, source: int, size: int, count: int) -> Iterator[Tensor]:
        if not count:
            return
        begin = self.epoch * count
        for number in range(begin // size, (begin + count - 1) // size + 1):
            first, last = max(begin - number * size, 0), min(begin + count - number * size, size)
            if last - first == size:
                yield torch.arange(size, dtype=torch.int32)
            else:
                generator = torch.Generator().manual_seed(hash((self.seed, source, number)) % 2**63)
                yield torch.randperm(size, generator=generator, dtype=torch.int32)[first:last].sort().values


class TokenBatches(Sampler[list[int]]):
    """Batches of at most `max_tokens` tokens and `batch_size` pairs.

    Which pairs share a batch is settled once, by the seed; an epoch shuffles the batches. So every epoch has as many
    steps as the first one, and a schedule by steps ends where the run does.

    Args:
        order: whose first epoch is cut into batches; Lightning tells it the epoch.
        tokens: of each position.
        start: batches to leave out at the beginning of the next iteration, for a run that goes on.
    """

    def __init__(self, order: EpochSampler, tokens: np.ndarray, max_tokens: int, batch_size: int):
        self.sampler, self.start, self.batches = order, 0, []
        epoch, order.epoch = order.epoch, 0
        size = max_tokens
        for position in order.positions().tolist():
            size += int(tokens[position])
            if size > max_tokens or len(self.batches[-1]) == batch_size:
                self.batches.append([])
                size = int(tokens[position])
            self.batches[-1].append(position)
        order.epoch = epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.arange(len(self.batches))
        if self.sampler.shuffle:
            generator = torch.Generator().manual_seed(self.sampler.seed * 1_000_003 + self.sampler.epoch)
            order = torch.randperm(len(self.batches), generator=generator)
        start, self.start = self.start, 0
        yield from (self.batches[i] for i in order[start:].tolist())
