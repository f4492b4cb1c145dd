"""What the page's script draws and compares, small enough to stand in the page."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from lightning_dpo.report.plots import LINES, line_names
from lightning_dpo.report.rows import Point, Row, Run

NUMBERS = 60_000
"""Numbers of all curves together, about 0.5 MB."""
FEWEST = 4
"""Points of a curve, however many there are."""
CHARACTERS = 1_000_000
"""Of all completions together."""


def data(runs: list[Run], titles: dict[str, str], found: list[Point], score: str | None) -> dict[str, Any]:
    lines = line_names(found)
    line_of = {name: point.line for point in found for name in point.runs}
    drawn = {name: title for name, title in titles.items() if any(f"val/{name}" in run.curves for run in runs)}
    most = max(FEWEST, NUMBERS // max(1, 4 * len(runs) * len(drawn)))
    prompts: dict[str, int] = {}
    budget = CHARACTERS // (len(runs) + 1)
    completions = [_completions(run.samples(), score, prompts, budget) for run in runs]
    before = next((s for run in runs if (s := _completions(run.samples(), score, prompts, budget, first=True))), None)
    return {
        "titles": drawn,
        "score": score,
        "runs": [
            {
                "name": run.name,
                "colour": lines.index(line_of[run.name]) % len(LINES) if run.name in line_of else None,
                "curves": {
                    name: {side: thinned(run.curves.get(f"{side}/{name}", []), most) for side in ("val", "train")}
                    for name in drawn
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
    """Position of the run that the page shows first."""
    metric = f"val/samples/{score}" if score else "val/rewards/accuracies"
    return max(range(len(runs)), key=lambda i: (runs[i].done, runs[i].end.get(metric, float("-inf"))))


def thinned(curve: list[tuple[int, float]], most: int) -> list[tuple[float, float]]:
    """At most that many points, each the mean of its neighbours.

    >>> thinned([(1, 1.0), (2, 3.0), (3, 5.0), (4, 7.0)], 2)
    [(1.5, 2.0), (3.5, 6.0)]
    """
    size = -(-len(curve) // most)
    groups = [curve[i : i + size] for i in range(0, len(curve), max(1, size))]
    return [(_rounded(x for x, _ in group), _rounded(y for _, y in group)) for group in groups]


def _rounded(values: Iterable[float]) -> float:
    values = list(values)
    return float(f"{sum(values) / len(values):.5g}")


def _completions(
    rows: list[Row], score: str | None, prompts: dict[str, int], budget: int, first: bool = False
) -> list[list[Any]]:
    """[number of the prompt, how often it came before, text, score] of the last validation, or of the one before
    training; the first ones that fit into the budget."""
    steps = {row["step"] for row in rows}
    if not steps or (first and 0 not in steps):
        return []
    step, seen, kept = 0 if first else max(steps), Counter(), []
    for row in rows:
        if row["step"] == step:
            prompt, text = str(row["prompt"]), str(row["text"])
            budget -= len(text) + (0 if prompt in prompts else len(prompt))
            if budget < 0:
                break
            number = prompts.setdefault(prompt, len(prompts))
            kept.append([number, seen[number], text, row.get(score) if score else None])
            seen[number] += 1
    return kept
