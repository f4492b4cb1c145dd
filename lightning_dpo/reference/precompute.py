"""All pairs of a source through a reference, in large batches without gradients."""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import chain, islice

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lightning_dpo.batch import PairBatch, TokenLogps
from lightning_dpo.ragged import Ragged
from lightning_dpo.scoring import Scorer

FORWARD_TOKENS = 16384
"""Tokens of one forward pass."""
PART_BATCHES = 32
"""Forward passes of one part, which is what a run that was stopped has to compute again."""


class Precomputation:
    """Cuts the pairs into `parts`, the same for the same pairs and layout, and computes a part when it is called.

    Pairs that share a prompt are neighbours, so that it is computed once, and the longest come first, so that too large
    a batch fails at once.
    """

    def __init__(self, scorer: Scorer, pairs: PairBatch, name: str):
        self.scorer, self.pairs, self.name = scorer, pairs, name
        batches = self._batches(_by_prompt(pairs))
        parts = iter(lambda: list(chain.from_iterable(islice(batches, PART_BATCHES))), [])
        self.parts: list[list[int]] = list(parts)
        self.done = 0

    def _batches(self, rows: Iterable[int]) -> Iterator[list[int]]:
        """Rows cut where a forward pass would exceed FORWARD_TOKENS, padding included where the layout pads."""
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
        """Log-probabilities of these pairs, on the CPU, with a progress bar over all pairs."""
        chosen, rejected = [], []
        bar = Progress(
            TextColumn("reference log-probabilities ({task.description})"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            transient=len(rows) + self.done < len(self.pairs),
        )
        with bar:
            task = bar.add_task(self.name, total=len(self.pairs), completed=self.done)
            for batch in self._batches(rows):
                scored = self.scorer(self.pairs.select(batch).to(self.scorer.model.device))
                chosen.append(scored.chosen.to("cpu"))
                rejected.append(scored.rejected.to("cpu"))
                self.done += len(batch)
                bar.update(task, completed=self.done)
        return TokenLogps(Ragged.cat(chosen), Ragged.cat(rejected))


def _by_prompt(pairs: PairBatch) -> list[int]:
    """Row numbers with equal prompts side by side, the prompt with the longest sequence first."""
    longest = (pairs.prompt.lengths + torch.maximum(pairs.chosen.lengths, pairs.rejected.lengths)).tolist()
    values, ends = pairs.prompt.values.numpy(), pairs.prompt.lengths.cumsum(0).tolist()
    groups: dict[bytes, list[int]] = {}
    for row, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        groups.setdefault(blake2b(values[start:end].tobytes(), digest_size=8).digest(), []).append(row)
    ordered = sorted(groups.values(), key=lambda rows: -max(longest[row] for row in rows))
    return list(chain.from_iterable(ordered))
