"""Curves and completions for the page's script, reduced to a size that fits in the page."""

from collections import Counter
from typing import Any

from lightning_dpo.report.plots import LINES, curve_titles, line_names
from lightning_dpo.report.rows import Point, Row, Run

NUMBERS = 60_000
"""Limit for all curves together, about 0.5 MB."""
FEWEST = 4
"""Points that a curve keeps even beyond that limit."""
CHARACTERS = 1_000_000
"""Limit for all completions together."""


def data(runs: list[Run], found: list[Point], score: str | None) -> dict[str, Any]:
    lines, titles = line_names(found), curve_titles(runs)
    line_of = {name: point.line for point in found for name in point.runs}
    most = max(FEWEST, NUMBERS // max(1, 4 * len(runs) * len(titles)))
    prompts: dict[str, int] = {}
    budget = CHARACTERS // (len(runs) + 1)
    completions = [_completions(run.samples(), score, prompts, budget) for run in runs]
    before = next((s for run in runs if (s := _completions(run.samples(), score, prompts, budget, first=True))), None)
    return {
        "titles": titles,
        "score": score,
        "runs": [
            {
                "name": run.name,
                "colour": lines.index(line_of[run.name]) % len(LINES) if run.name in line_of else None,
                "curves": {
                    name: {side: thinned(run.curves.get(f"{side}/{name}", []), most) for side in ("val", "train")}
                    for name in titles
                },
                "samples": samples,
            }
            for run, samples in zip(runs, completions, strict=True)
        ],
        "before": before,
        "prompts": list(prompts),
        "best": _best(runs, score),
    }


def _best(runs: list[Run], score: str | None) -> int:
    """Index of the run that the page shows first."""
    metric = f"val/samples/{score}" if score else "val/rewards/accuracies"
    return max(range(len(runs)), key=lambda i: (runs[i].done, runs[i].end.get(metric, float("-inf"))))


def thinned(curve: list[tuple[int, float]], most: int) -> list[tuple[float, ...]]:
    """At most `most` points, each the mean of neighbours.

    >>> thinned([(1, 1.0), (2, 3.0), (3, 5.0), (4, 7.0)], 2)
    [(1.5, 2.0), (3.5, 6.0)]
    """
    size = -(-len(curve) // most)
    groups = [curve[i : i + size] for i in range(0, len(curve), max(1, size))]
    return [tuple(float(f"{sum(values) / len(group):.5g}") for values in zip(*group, strict=True)) for group in groups]


def _completions(
    rows: list[Row], score: str | None, prompts: dict[str, int], budget: int, first: bool = False
) -> list[list[Any]]:
    """Completions of the last validation, or of the one before training, up to `budget` characters.

    Each is [index of the prompt, number of the completion for it, text, score]. New prompts are added to `prompts`.
    """
    steps = {row["step"] for row in rows}
    if not steps or (first and 0 not in steps):
        return []
    step, counts, kept = 0 if first else max(steps), Counter(), []
    for row in rows:
        if row["step"] == step:
            prompt, text = str(row["prompt"]), str(row["text"])
            budget -= len(text) + (0 if prompt in prompts else len(prompt))
            if budget < 0:
                break
            number = prompts.setdefault(prompt, len(prompts))
            kept.append([number, counts[number], text, row.get(score) if score else None])
            counts[number] += 1
    return kept
