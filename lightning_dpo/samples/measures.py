"""Measurements of completions: KL to the reference, scores, lengths."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch

from lightning_dpo.data.sets import PairSet
from lightning_dpo.ragged import Ragged
from lightning_dpo.scoring import Scorer

SCORE_ROWS = 64
"""Completions per forward pass of scoring."""


class Completion(NamedTuple):
    """One sampled completion; log-probabilities are sums over its tokens, in nats."""

    prompt: str
    text: str
    tokens: int
    logp: float
    ref_logp: float | None
    scores: dict[str, float]


def distinct_prompts(sets: Iterable[PairSet]) -> Iterator[list[int]]:
    """The distinct prompts as token ids, in the order of their first row."""
    seen: set[tuple[int, ...]] = set()
    for pairs in sets:
        for position in range(len(pairs)):
            stored, row = pairs.locate(position)
            prompt = tuple(stored.pairs.prompt.row(row).tolist())
            if prompt not in seen:
                seen.add(prompt)
                yield list(prompt)


def named_scores(scorer: Callable[[list[str]], Any] | None, texts: list[str]) -> dict[str, list[float]]:
    """A scorer's numbers by name; a plain list is named `reward`.

    Errors: ValueError unless the scorer returns one number per text.
    """
    if scorer is None:
        return {}
    result = scorer(texts)
    named = result if isinstance(result, dict) else {"reward": result}
    for name, values in named.items():
        if len(values) != len(texts):
            raise ValueError(f"samples.scorer returned {len(values)} values of {name!r} for {len(texts)} texts")
    return {name: [float(v) for v in values] for name, values in named.items()}


def summarise(completions: list[Completion]) -> dict[str, float]:
    """Means over completions: `kl` and, for two or more, `kl_se` (nats per sequence), `samples/length` and
    `samples/<score>`."""
    n = len(completions)
    summary = {"samples/length": sum(c.tokens for c in completions) / n}
    ratios = torch.tensor([c.logp - c.ref_logp for c in completions if c.ref_logp is not None], dtype=torch.float64)
    if len(ratios):
        summary["kl"] = ratios.mean().item()
        if len(ratios) > 1:
            summary["kl_se"] = (ratios.std(correction=1) / len(ratios) ** 0.5).item()
    for name in completions[0].scores:
        # Not fmean, which rounds differently.
        summary[f"samples/{name}"] = sum(c.scores[name] for c in completions) / n
    return summary


def token_logps(scorer: Scorer, prompts: list[list[int]], responses: list[list[int]]) -> Ragged:
    """Log-probability of each token of the responses, in nats, a row for each prompt, on the CPU."""
    device, scored = scorer.model.device, []
    for start in range(0, len(prompts), SCORE_ROWS):
        rows = slice(start, start + SCORE_ROWS)
        prompt, response = (Ragged.from_rows(side[rows]) for side in (prompts, responses))
        logps = scorer.responses(prompt.to(device), response.to(device))
        scored.append(Ragged(logps.cpu(), response.lengths))
    return Ragged.cat(scored)
