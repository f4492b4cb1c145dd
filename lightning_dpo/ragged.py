"""Rows of unequal length, stored end to end: nothing is padded."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Ragged:
    """Rows of unequal length.

    Args:
        values: shape [sum of lengths].
        lengths: shape [row], int64. It stays on the CPU, so that reading a length never waits for a GPU.
        ends: cumulative lengths, if they are known.
    """

    # Not a tuple or dataclass: Lightning would cast its floats to the training precision, and so round cached float32
    # log-probabilities to bf16. It moves any object that has `.to(device)`.
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
    """Which sequences have the same prompt, or the same prompt and response.

    groups: for each distinct prompt, the first rows of its distinct responses.
    twin: for each row, the first row with the same prompt and response.
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
        """The sharing among the first `rows` sequences."""
        groups = [[row for row in group if row < rows] for group in self.groups]
        return Sharing([group for group in groups if group], self.twin[:rows])


def _contents(side: Ragged) -> list[bytes]:
    return [row.numpy().tobytes() for row in side.to("cpu").rows()]


def ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """start, start + 1, ..., start + length - 1 for each pair of a start and a length, end to end.

    >>> ranges(torch.tensor([5, 0]), torch.tensor([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    before = lengths.cumsum(0) - lengths
    return (starts - before).repeat_interleave(lengths) + torch.arange(int(lengths.sum()))
