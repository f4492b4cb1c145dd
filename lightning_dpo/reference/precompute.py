"""Score all pairs of a source with a reference, in large batches."""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import chain, pairwise

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lightning_dpo.batch import PairBatch, TokenLogps
from lightning_dpo.ragged import Ragged
from lightning_dpo.scoring import Scorer

FORWARD_TOKENS = 16384
"""Tokens per forward pass."""
PART_BATCHES = 32
"""Forward passes per part. An interrupted run loses at most the part that it was computing."""


class Precomputation:
    """Cuts the pairs into `parts`, which depend on the pairs and the layout only, and computes a part when called.

    Pairs that share a prompt are neighbours, so that it is computed once. The longest come first, so that a batch too
    large for the memory fails at once.
    """

    def __init__(self, scorer: Scorer, pairs: PairBatch, name: str):
        self.scorer, self.pairs, self.name = scorer, pairs, name
        batches = list(self._batches(_by_prompt(pairs)))
        starts = range(0, len(batches), PART_BATCHES)
        self.parts = [list(chain.from_iterable(batches[start : start + PART_BATCHES])) for start in starts]
        self.done = 0

    def _batches(self, rows: Iterable[int]) -> Iterator[list[int]]:
        """Rows of each forward pass, at most FORWARD_TOKENS with the layout's padding; a longer pair goes alone."""
        sides = (self.pairs.prompt.lengths, self.pairs.chosen.lengths, self.pairs.rejected.lengths)
        total, longest = sum(sides).tolist(), (sides[0] + torch.maximum(*sides[1:])).tolist()  # type: ignore[union-attr]
        batch, tokens, widest = [], 0, 0
        for i in rows:
            widest = max(widest, longest[i])
            tokens = tokens + total[i] if self.scorer.layout == "shared_prefix" else 2 * (len(batch) + 1) * widest
            if batch and tokens > FORWARD_TOKENS:
                yield batch
                batch, tokens, widest = [], total[i], longest[i]
            batch.append(i)
        if batch:
            yield batch

    def __call__(self, rows: Sequence[int]) -> TokenLogps:
        """Log-probabilities of these pairs, on the CPU, with a progress bar over all pairs of the source."""
        scored = []
        label = TextColumn("reference log-probabilities ({task.description})")
        columns = label, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, transient=len(rows) + self.done < len(self.pairs)) as bar:
            task = bar.add_task(self.name, total=len(self.pairs), completed=self.done)
            for batch in self._batches(rows):
                logps = self.scorer(self.pairs.select(batch).to(self.scorer.model.device))
                scored.append([side.to("cpu") for side in logps])
                self.done += len(batch)
                bar.update(task, completed=self.done)
        return TokenLogps(*(Ragged.cat(side) for side in zip(*scored, strict=True)))


def _by_prompt(pairs: PairBatch) -> list[int]:
    """Row numbers grouped by equal prompts, the prompt with the longest sequence first."""
    longest = (pairs.prompt.lengths + torch.maximum(pairs.chosen.lengths, pairs.rejected.lengths)).tolist()
    values, ends = pairs.prompt.values.numpy(), pairs.prompt.lengths.cumsum(0).tolist()
    groups: dict[bytes, list[int]] = {}
    for row, (start, end) in enumerate(pairwise([0, *ends])):
        groups.setdefault(blake2b(values[start:end].tobytes(), digest_size=8).digest(), []).append(row)
    ordered = sorted(groups.values(), key=lambda rows: -max(longest[row] for row in rows))
    return list(chain.from_iterable(ordered))
