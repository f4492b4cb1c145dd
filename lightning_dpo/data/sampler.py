"""The order of an epoch, and batches limited by tokens."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler


class EpochSampler(Sampler[int]):
    """Positions in a set, in an order that is a function of seed and epoch. Lightning sets the epoch.

    Each source gives `round(weight x its pairs)` positions per epoch, at least one if it has pairs. Epochs continue an
    endless sequence of passes over the source, each shuffled by itself, so a weight of 1/2 sees every pair once in two
    epochs.

    Args:
        sizes: pairs of each source in the set. weights: passes per epoch.
        shuffle: False keeps the order of sources and rows.

    `start` is the number of positions that the next iteration skips, for a run that resumes.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int, shuffle: bool):
        self.sizes, self.seed, self.shuffle, self.epoch, self.start = list(sizes), seed, shuffle, 0, 0
        self.counts = [max(1, round(size * weight)) if size else 0 for size, weight in zip(sizes, weights, strict=True)]

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(self.counts)

    def __iter__(self) -> Iterator[int]:
        rows, self.start = self.positions(self.epoch)[self.start :], 0
        for piece in rows.split(1 << 14):
            yield from piece.tolist()

    def positions(self, epoch: int) -> Tensor:
        parts, offset = [], 0
        for source, (size, count) in enumerate(zip(self.sizes, self.counts, strict=True)):
            parts += [part + offset for part in self._passes(source, size, count, epoch)]
            offset += size
        rows = torch.cat(parts)
        return rows[self.permutation(len(rows), epoch)]

    def permutation(self, size: int, epoch: int) -> Tensor:
        """The order of `size` items in this epoch."""
        if not self.shuffle:
            return torch.arange(size)
        return torch.randperm(size, generator=torch.Generator().manual_seed(self.seed * 1_000_003 + epoch))

    def _passes(self, source: int, size: int, count: int, epoch: int) -> Iterator[Tensor]:
        if not count:
            return
        begin = epoch * count
        for number in range(begin // size, (begin + count - 1) // size + 1):
            first, last = max(begin - number * size, 0), min(begin + count - number * size, size)
            if last - first == size:
                yield torch.arange(size, dtype=torch.int32)
            else:
                # Integers hash the same in every process, whatever PYTHONHASHSEED is.
                generator = torch.Generator().manual_seed(hash((self.seed, source, number)) % 2**63)
                yield torch.randperm(size, generator=generator, dtype=torch.int32)[first:last].sort().values


class TokenBatches(Sampler[list[int]]):
    """Batches of at most `max_tokens` tokens and `batch_size` pairs.

    The seed decides once which pairs share a batch, and each epoch shuffles the batches. All epochs therefore have the
    same number of steps, and a schedule over steps ends when the run does.

    Args:
        order: its first epoch is split into batches; Lightning sets its epoch.
        tokens: of each position, shape [pair].

    `start` is the number of batches that the next iteration skips, for a run that resumes.
    """

    def __init__(self, order: EpochSampler, tokens: np.ndarray, max_tokens: int, batch_size: int):
        self.sampler, self.start, self.batches = order, 0, []
        size = max_tokens
        for position in order.positions(epoch=0).tolist():
            size += int(tokens[position])
            if size > max_tokens or len(self.batches[-1]) == batch_size:
                self.batches.append([])
                size = int(tokens[position])
            self.batches[-1].append(position)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        order = self.sampler.permutation(len(self.batches), self.sampler.epoch)
        start, self.start = self.start, 0
        yield from (self.batches[i] for i in order[start:].tolist())
