"""What travels between data, scoring and losses: ragged rows, a batch of pairs, and token log-probabilities."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_dpo.ragged import Ragged, Sharing


class TokenLogps(NamedTuple):
    """Log-probabilities of the response tokens, in nats, end token included, prompt excluded."""

    chosen: Ragged
    rejected: Ragged


class PairBatch:
    """Tokenised preference pairs, ragged: how they are laid out for the model is the scorer's business.

    A whole data source is one PairBatch on the CPU, and a batch is a selection of pairs.

    Args:
        prompt, chosen, rejected: token ids, one row per pair; a full sequence is prompt + chosen or prompt + rejected.
        index: row numbers, shape [pair]: in the source for a source, in the data set for a batch of it.
        reference: cached log-probabilities under the reference, of the trained tokens; None without a cache.
        trained: for chosen and rejected, per response token whether it is scored (uint8); None: all are.
        weight: factor of each pair's loss, shape [pair]; None: 1.
        margin: the gap that the data ask for, shape [pair]; None without a margin column.
    """

    def __init__(
        self,
        prompt: Ragged,
        chosen: Ragged,
        rejected: Ragged,
        index: Tensor,
        reference: TokenLogps | None = None,
        trained: tuple[Ragged, Ragged] | None = None,
        weight: Tensor | None = None,
        margin: Tensor | None = None,
    ):
        self.prompt = prompt
        self.chosen = chosen
        self.rejected = rejected
        self.index = index
        self.reference = reference
        self.trained = trained
        self.weight = weight
        self.margin = margin
        self.reference_of: str | None = None
        """Hash of the weights that `reference` was computed with."""
        self.rows_used = 0
        """In a stream: rows of the epoch that were read when the batch was full."""
        self.rows_read: dict[str, int] = {}
        """In a stream: what became of the rows that were read since the batch before."""
        self._sharing: Sharing | None = None

    def __len__(self) -> int:
        return len(self.index)

    def select(self, pairs: Sequence[int]) -> "PairBatch":
        """The batch of these pairs, in this order."""
        rows = list(pairs)
        return self._map(lambda ragged: ragged.select(rows), lambda column: column[rows], self.index[rows])

    def to(self, *args, **kwargs) -> "PairBatch":
        moved = self._map(lambda ragged: ragged.to(*args, **kwargs), lambda c: c.to(*args, **kwargs), self.index)
        moved._sharing = self._sharing
        return moved

    @property
    def sharing(self) -> Sharing:
        """What the chosen sequences, followed by the rejected ones, share; found once, best where the ids are on the
        CPU."""
        if self._sharing is None:
            sides = [Ragged.cat([self.prompt, self.prompt]), Ragged.cat([self.chosen, self.rejected])]
            self._sharing = Sharing.of(*sides)
        return self._sharing

    def _map(self, ragged, column, index: Tensor) -> "PairBatch":
        mapped = PairBatch(
            *(ragged(side) for side in (self.prompt, self.chosen, self.rejected)),
            index=index,
            reference=self.reference and TokenLogps(*map(ragged, self.reference)),
            trained=self.trained and (ragged(self.trained[0]), ragged(self.trained[1])),
            weight=None if self.weight is None else column(self.weight),
            margin=None if self.margin is None else column(self.margin),
        )
        mapped.rows_used, mapped.rows_read = self.rows_used, self.rows_read
        return mapped

    def trained_lengths(self) -> tuple[Tensor, Tensor]:
        """How many response tokens of each pair are scored, chosen and rejected, each shape [pair]."""
        if self.trained is None:
            return self.chosen.lengths, self.rejected.lengths
        chosen, rejected = (Ragged(m.values.double(), m.lengths).sum().long().cpu() for m in self.trained)
        return chosen, rejected

    @classmethod
    def cat(cls, parts: "Sequence[PairBatch]") -> "PairBatch":
        """All pairs of all parts, in order. A mask, weight or margin that a part lacks is filled with its default."""
        if len(parts) == 1:
            return parts[0]
        chosen, rejected = (Ragged.cat([getattr(p, side) for p in parts]) for side in ("chosen", "rejected"))
        reference, trained = None, None
        references = [p.reference for p in parts if p.reference is not None]
        if len(references) == len(parts):
            reference = TokenLogps(*(Ragged.cat(sides) for sides in zip(*references, strict=True)))
        if any(p.trained is not None for p in parts):
            masks = [p.trained or (_all(p.chosen), _all(p.rejected)) for p in parts]
            trained = (Ragged.cat([m[0] for m in masks]), Ragged.cat([m[1] for m in masks]))
        return cls(
            Ragged.cat([p.prompt for p in parts]),
            chosen,
            rejected,
            torch.cat([p.index for p in parts]),
            reference,
            trained,
            _columns([p.weight for p in parts], parts, 1.0),
            _columns([p.margin for p in parts], parts, 0.0),
        )


def _all(side: Ragged) -> Ragged:
    return Ragged(torch.ones(len(side.values), dtype=torch.uint8), side.lengths)


def _columns(columns: Sequence[Tensor | None], parts: Sequence[PairBatch], default: float) -> Tensor | None:
    if all(column is None for column in columns):
        return None
    filled = (torch.full((len(p),), default).double() if c is None else c for c, p in zip(columns, parts, strict=True))
    return torch.cat(list(filled))
