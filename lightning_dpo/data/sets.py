"""Sets of pairs over tokenised sources, and the split by prompt."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from lightning_dpo.batch import PairBatch
from lightning_dpo.data.columns import SIDES
from lightning_dpo.data.store import TokenisedSource
from lightning_dpo.errors import DataError


class PairSet:
    """Some pairs of some sources, in the order of the sources, without a copy.

    Args:
        parts: the sources.
        rows: for each source, the row numbers that belong to the set; None: all.
    """

    def __init__(self, parts: Sequence[TokenisedSource], rows: Sequence[Tensor | None] | None = None):
        self.parts = list(parts)
        self.rows = list(rows or [None] * len(self.parts))
        self.sizes = [len(p) if r is None else len(r) for p, r in zip(self.parts, self.rows, strict=True)]
        self._starts = np.cumsum([0, *self.sizes])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def locate(self, position: int) -> tuple[TokenisedSource, int]:
        """The source of a pair and its row number there."""
        part = int(np.searchsorted(self._starts, position, side="right")) - 1
        row, rows = position - int(self._starts[part]), self.rows[part]
        return self.parts[part], row if rows is None else int(rows[row])

    def where(self, position: int) -> str:
        """File and line of a pair."""
        stored, row = self.locate(position)
        return stored.where(row)

    def select(self, positions: Sequence[int]) -> PairBatch:
        """The batch of these pairs, in this order. Its `index` holds the positions."""
        if len(self.parts) == 1:
            (part,), (rows,) = self.parts, self.rows
            batch = part.pairs.select(positions if rows is None else rows[list(positions)].tolist())
        else:
            located = sorted((self.parts.index(s), row, i) for i, (s, row) in enumerate(map(self.locate, positions)))
            by_part = [(k, list(group)) for k, group in groupby(located, key=lambda x: x[0])]
            batch = PairBatch.cat([self.parts[k].pairs.select([row for _, row, _ in group]) for k, group in by_part])
            batch = batch.select(np.argsort([i for *_, i in located]).tolist())
        batch.index = torch.tensor(list(positions))
        return batch

    def tokens(self) -> np.ndarray:
        """Prompt, chosen and rejected tokens of each pair, shape [pair]."""
        return np.sum([np.concatenate([*self.columns(f"{side}_lengths")]) for side in SIDES], axis=0)

    def columns(self, name: str, size: int = 1 << 16) -> Iterator[np.ndarray]:
        """A column of all sources in pieces, so that memory does not grow with the rows."""
        for part, rows in zip(self.parts, self.rows, strict=True):
            column, count = part.column(name), len(part) if rows is None else len(rows)
            for start in range(0, count, size):
                piece = slice(start, start + size)
                yield np.asarray(column[piece if rows is None else rows[piece].numpy()])


def split_by_prompt(parts: Sequence[TokenisedSource], fraction: float) -> tuple[PairSet, PairSet]:
    """Training and validation sets without a common prompt. `fraction` is the share of distinct prompts held out.

    The prompts with the smallest hashes go to validation. The split therefore depends on the prompts alone, not on a
    seed or the order of the rows, so runs are comparable and cached references are found again.

    Errors: DataError if either side would be empty.
    """
    distinct = np.unique(np.concatenate([part.column("prompt_hash") for part in parts]))
    held_out = distinct[: int(np.ceil(fraction * len(distinct)))]
    if len(held_out) == len(distinct):
        raise DataError(
            f"data.val={fraction}: {len(distinct)} distinct prompts cannot be split into training and validation; "
            "give validation its own file, or type data.val=null for none"
        )
    in_val = [part.column("prompt_hash") <= held_out[-1] for part in parts]
    rows = [
        [torch.from_numpy(np.flatnonzero(side == mask).astype(np.int32)) for mask in in_val] for side in (False, True)
    ]
    return PairSet(parts, rows[0]), PairSet(parts, rows[1])
