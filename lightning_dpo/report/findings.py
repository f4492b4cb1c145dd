"""The findings of a report, in sentences."""

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning_dpo.errors import ConfigError
from lightning_dpo.report.rows import Point, Run, scores


def headline(runs: list[Run]) -> str:
    if len(runs) == 1:
        return f"One run, {runs[0].state}"
    done = sum(run.done for run in runs)
    return f"{len(runs)} runs" + ("" if done == len(runs) else f", {done} of them finished")


def on_frontier(found: Iterable[Point], score: str | None) -> list[Point]:
    return [p for p in found if "KL" in p.mean and score in p.mean]


def against_beta(found: Iterable[Point]) -> list[Point]:
    """The points with a beta above 0 and an accuracy; none unless there are at least two betas."""
    shown = [p for p in found if p.beta is not None and p.beta > 0 and "accuracy" in p.mean]
    return shown if len({p.beta for p in shown}) > 1 else []


def start(runs: Iterable[Run], metric: str) -> float | None:
    """The mean over runs of a metric before training."""
    values = [run.start[metric] for run in runs if metric in run.start]
    return fmean(values) if values else None


def optimum(folder: Path) -> dict[str, Any]:
    """The content of `optimum.json`, the best policy at each beta; empty if there is no such file.

    Errors: ConfigError for a file of another form.
    """
    path = folder / "optimum.json"
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        for point in found["points"]:
            _ = float(point["kl"]), float(point["score"])
    except (ValueError, KeyError, TypeError) as error:
        form = '{"points": [{"beta": 0.1, "kl": 5.0, "score": 1.5}, ...], "note": "..."}'
        raise ConfigError(f"{path}: {type(error).__name__} {error}; expected {form}") from None
    return found


def why_no_frontier(runs: list[Run]) -> str:
    if not any(run.done for run in runs):
        return "No frontier: no run has finished."
    if not scores(runs):
        return (
            "No frontier: no run scored its completions. For the next runs, set "
            "samples.scorer=package.module.function (texts in, numbers out) and samples.n above 0."
        )
    return (
        "No frontier: no finished run has a KL to the reference. It needs a reference (reference=cached or copy) and "
        "completions (samples.n above 0)."
    )


def name(point: Point) -> str:
    return point.line if point.beta is None else f"{point.line} at beta {point.beta:g}"


def value(point: Point, metric: str) -> str:
    spread = f" ± {point.sd[metric]:.2g}" if point.seeds > 1 else ""
    return f"{point.mean[metric]:.3g}{spread}"


def sentences(found: list[Point], score: str) -> list[str]:
    """The best point, the best one at a smaller KL, and whether a larger KL lowers the score."""
    drawn = on_frontier(found, score)
    best = max(drawn, key=lambda p: p.mean[score])
    lines = [f"Best {score}: {name(best)}, {value(best, score)} at a KL of {value(best, 'KL')} nats."]
    for share in (0.5, 0.25):
        limit = float(f"{share * best.mean['KL']:.1g}")
        within = [p for p in drawn if p.mean["KL"] <= limit]
        if within and limit > 0:
            near = max(within, key=lambda p: p.mean[score])
            lines.append(f"At a KL of at most {limit:g} nats: {name(near)}, {value(near, score)}.")
            break
    further = [p for p in drawn if p.line == best.line and p.mean["KL"] > best.mean["KL"]]
    worse = [p for p in further if p.mean[score] + p.sd[score] < best.mean[score] - best.sd[score]]
    if worse:
        last = max(worse, key=lambda p: p.mean["KL"])
        kl = last.mean["KL"]
        lines.append(f"A larger KL lowers {score}: {name(last)}, {value(last, score)} at a KL of {kl:.3g} nats.")
    return lines


def caption(folder: Path, runs: list[Run], found: list[Point], score: str) -> Iterable[str]:
    drawn = on_frontier(found, score)
    yield "Higher is better; further left is closer to the reference (the KL axis is a square root). Labels: beta."
    seeds = {p.seeds for p in drawn}
    if seeds == {1}:
        yield "One seed each, so there are no error bars."
    else:
        yield f"Points and bars: mean and standard deviation over {' or '.join(map(str, sorted(seeds)))} seeds."
    if repeats := sum(len(p.runs) - p.seeds for p in drawn):
        subject = "1 run repeats" if repeats == 1 else f"{repeats} runs repeat"
        yield f"{subject} another one with the same seed; only the last one counts."
    if note := optimum(folder).get("note"):
        yield f"Dashed: {note.rstrip('.')}."
    if hidden := len(found) - len(drawn):
        yield f"{hidden} {'point has' if hidden == 1 else 'points have'} no KL or no {score} and cannot be shown."
    if unfinished := sum(not run.done for run in runs):
        yield f"{unfinished} unfinished {'run is' if unfinished == 1 else 'runs are'} left out."
