"""Rows of unequal length, stored end to end: nothing is padded."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Ragged:
    """Rows of unequal length stored end to end, so that nothing is padded.

    Args:
        values: shape [sum of lengths].
        lengths: shape [row], int64. It stays on the CPU, so that reading a length never waits for a GPU.
        ends: cumulative lengths, where they are at hand.
    """

    # A plain class on purpose: Lightning moves anything that has `.to(device)`, but rebuilds tuples and dataclasses
    # and casts their floats to the training precision, which would round cached float32 log-probabilities to bf16.
    def __init__(self, values: Tensor, lengths: Tensor, ends: Tensor | None = None):
        self.values = values
        self.lengths = lengths
        self._ends = lengths.cumsum(0) if ends is None else ends

    @classmethod
    def from_rows(cls, rows: Sequence[Tensor | Sequence[int]], dtype: torch.dtype | None = None) -> "Ragged":
        tensors = [torch.as_tensor(row, dtype=dtype) for row in rows]
        return cls(torch.cat(tensors), torch.tensor([len(t) for t in tensors]))

    @classmethod
    def cat(cls, parts: "Iterable[Ragged]") -> "Ragged":
        parts = list(parts)
        return cls(torch.cat([p.values for p in parts]), torch.cat([p.lengths for p in parts]))

    def __len__(self) -> int:
        return len(self.lengths)

    def rows(self) -> tuple[Tensor, ...]:
        return self.values.split(self.lengths.tolist())

    def row(self, index: int) -> Tensor:
        end = int(self._ends[index])
        return self.values[end - int(self.lengths[index]) : end]

    def select(self, rows: Sequence[int]) -> "Ragged":
        chosen = torch.as_tensor(rows, dtype=torch.long)
        lengths = self.lengths[chosen]
        return Ragged(self.values[ranges(self._ends[chosen] - lengths, lengths).to(self.values.device)], lengths)

    def sum(self) -> Tensor:
        """Sum of each row, shape [row]."""
        return torch.segment_reduce(self.values, "sum", lengths=self.lengths.to(self.values.device))

    def to(self, *args, **kwargs) -> "Ragged":
        return Ragged(self.values.to(*args, **kwargs), self.lengths)


class Sharing(NamedTuple):
    """Which of some sequences, each a prompt and a response, have the same tokens.

    groups: for each distinct prompt, the first rows of its distinct responses. twin: for each row, the first row with
    the same prompt and response.
    """

    groups: list[list[int]]
    twin: list[int]

    @classmethod
    def of(cls, prompt: Ragged, response: Ragged) -> "Sharing":
        groups: dict[bytes, dict[bytes, int]] = {}
        rows = enumerate(zip(_contents(prompt), _contents(response), strict=True))
        twin = [groups.setdefault(p, {}).setdefault(r, row) for row, (p, r) in rows]
        return cls([list(responses.values()) for responses in groups.values()], twin)

    def first(self, rows: int) -> "Sharing":
        """The same of the first rows alone."""
        groups = [[row for row in group if row < rows] for group in self.groups]
        return Sharing([group for group in groups if group], self.twin[:rows])


def _contents(side: Ragged) -> list[bytes]:
    values, ends = side.values.cpu().numpy(), side.lengths.cumsum(0).tolist()
    return [values[start:end].tobytes() for start, end in pairwise([0, *ends])]


def ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """start, start + 1, ..., start + length - 1 of each, end to end.

    >>> ranges(torch.tensor([5, 0]), torch.tensor([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    before = lengths.cumsum(0) - lengths
    return (starts - before).repeat_interleave(lengths) + torch.arange(int(lengths.sum()))
