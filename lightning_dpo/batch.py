"""What travels between data, scoring and losses: ragged rows, a batch of pairs, and token log-probabilities."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Ragged:
    """Rows of unequal length stored end to end, so that nothing is padded.

    Args:
        values: shape [sum of lengths].
        lengths: shape [row], int64. It stays on the CPU, so that reading a length never waits for a GPU.
    """

    # A plain class on purpose: Lightning moves anything that has `.to(device)`, but rebuilds tuples and dataclasses
    # and casts their floats to the training precision, which would round cached float32 log-probabilities to bf16.
    def __init__(self, values: Tensor, lengths: Tensor):
        self.values = values
        self.lengths = lengths
        self._ends = lengths.cumsum(0)

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
        return Ragged.from_rows([self.row(i) for i in rows])

    def sum(self) -> Tensor:
        """Sum of each row, shape [row]."""
        return torch.segment_reduce(self.values, "sum", lengths=self.lengths.to(self.values.device))

    def to(self, *args, **kwargs) -> "Ragged":
        return Ragged(self.values.to(*args, **kwargs), self.lengths)


class TokenLogps(NamedTuple):
    """Log-probabilities of the response tokens, in nats, end token included, prompt excluded."""

    chosen: Ragged
    rejected: Ragged


class PairBatch:
    """Tokenised preference pairs, ragged: how they are laid out for the model is the scorer's business.

    A whole data set is one PairBatch on the CPU, and a batch is a selection of its pairs.

    Args:
        prompt, chosen, rejected: token ids, one row per pair; a full sequence is prompt + chosen or prompt + rejected.
        index: row numbers in the data set, shape [pair].
        reference: cached log-probabilities under the reference, aligned with chosen and rejected; None without a cache.
    """

    def __init__(
        self,
        prompt: Ragged,
        chosen: Ragged,
        rejected: Ragged,
        index: Tensor,
        reference: TokenLogps | None = None,
    ):
        self.prompt = prompt
        self.chosen = chosen
        self.rejected = rejected
        self.index = index
        self.reference = reference
        self.reference_of: str | None = None
        """Hash of the weights that `reference` was computed with."""

    def __len__(self) -> int:
        return len(self.index)

    def select(self, pairs: Sequence[int]) -> "PairBatch":
        """The batch of these pairs, in this order."""
        reference = self.reference and TokenLogps(*(side.select(pairs) for side in self.reference))
        sides = (side.select(pairs) for side in (self.prompt, self.chosen, self.rejected))
        return PairBatch(*sides, index=self.index[list(pairs)], reference=reference)

    def to(self, *args, **kwargs) -> "PairBatch":
        reference = self.reference and TokenLogps(*(side.to(*args, **kwargs) for side in self.reference))
        sides = (side.to(*args, **kwargs) for side in (self.prompt, self.chosen, self.rejected))
        return PairBatch(*sides, index=self.index, reference=reference)
