"""What travels between data, scoring and losses: ragged rows, a batch of pairs, and token log-probabilities."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_dpo.errors import DataError
from lightning_dpo.ragged import Ragged, Sharing


class TokenLogps(NamedTuple):
    """Log-probabilities of the response tokens, in nats, end token included, prompt excluded."""

    chosen: Ragged
    rejected: Ragged


class PairBatch:
    """Tokenised preference pairs, ragged: the scorer lays them out for the model.

    A whole data source is one PairBatch on the CPU, and a batch is a selection of its pairs.

    Args:
        prompt, chosen, rejected: token ids, one row per pair; a full sequence is prompt + chosen or prompt + rejected.
        index: row numbers, shape [pair]: in the source for a source, in the data set for a batch of it.
        reference: cached log-probabilities under the reference, of the trained tokens; None without a cache.
        trained: for chosen and rejected, whether each response token is scored (uint8); None: all are.
        weight: factor of each pair's loss, shape [pair]; None: 1.
        margin: the target margin of each pair, shape [pair]; None without a margin column.
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
        self.prompt, self.chosen, self.rejected = prompt, chosen, rejected
        self.index = index
        self.reference = reference
        self.trained = trained
        self.weight, self.margin = weight, margin
        self.reference_of: str | None = None
        """Hash of the weights that `reference` was computed with."""
        self.rows_used = 0
        """In a stream: number of rows of the epoch read when the batch was full."""
        self.rows_read: dict[str, int] = {}
        """In a stream: outcomes of the rows read since the previous batch, by name."""
        self.ends: frozenset[int] = frozenset()
        """In a stream: the tokens that end these responses."""
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
        """What the chosen sequences, followed by the rejected ones, share; computed once, fastest on the CPU."""
        if self._sharing is None:
            prompts, responses = Ragged.cat([self.prompt, self.prompt]), Ragged.cat([self.chosen, self.rejected])
            self._sharing = Sharing.of(prompts, responses)
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
        mapped.rows_used, mapped.rows_read, mapped.ends = self.rows_used, self.rows_read, self.ends
        return mapped

    def trained_lengths(self) -> tuple[Tensor, Tensor]:
        """Number of scored tokens of the chosen and of the rejected responses, each [pair]."""
        if self.trained is None:
            return self.chosen.lengths, self.rejected.lengths
        chosen, rejected = (Ragged(m.values.double(), m.lengths).sum().long().cpu() for m in self.trained)
        return chosen, rejected

    @classmethod
    def cat(cls, parts: "Sequence[PairBatch]") -> "PairBatch":
        """All pairs of all parts, in order. A mask, weight or margin that a part lacks is filled with its default."""
        if len(parts) == 1:
            return parts[0]
        sides = [Ragged.cat([getattr(p, name) for p in parts]) for name in ("prompt", "chosen", "rejected")]
        joined = cls(*sides, index=torch.cat([p.index for p in parts]))
        references = [p.reference for p in parts if p.reference is not None]
        if len(references) == len(parts):
            joined.reference = TokenLogps(*map(Ragged.cat, zip(*references, strict=True)))
        if any(p.trained is not None for p in parts):
            chosen, rejected = zip(*(p.trained or (_ones(p.chosen), _ones(p.rejected)) for p in parts), strict=True)
            joined.trained = Ragged.cat(chosen), Ragged.cat(rejected)
        for name, default in (("weight", 1.0), ("margin", 0.0)):
            columns = [getattr(p, name) for p in parts]
            if any(column is not None for column in columns):
                defaults = (torch.full((len(p),), default, dtype=torch.float64) for p in parts)
                filled = [d if c is None else c for c, d in zip(columns, defaults, strict=True)]
                setattr(joined, name, torch.cat(filled))
        return joined


def check_batch(batch: object) -> None:
    """Errors: DataError for anything but a PairBatch."""
    if not isinstance(batch, PairBatch):
        keys = f" with the keys {', '.join(map(str, batch))}" if isinstance(batch, dict) else ""
        raise DataError(
            f"a batch is a {type(batch).__name__}{keys}; allowed: lightning_dpo.batch.PairBatch(prompt, chosen, "
            "rejected, index), whose sides are Ragged.from_rows([token ids of a row, ...]), as of PreferenceDataModule"
        )


def _ones(side: Ragged) -> Ragged:
    return Ragged(torch.ones(len(side.values), dtype=torch.uint8), side.lengths)
