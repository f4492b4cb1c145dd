"""What the runs say, in sentences."""

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning_dpo.errors import ConfigError
from lightning_dpo.report.rows import Point, Run, scores


def headline(runs: list[Run]) -> str:
    done = sum(run.done for run in runs)
    if len(runs) == 1:
        return f"One run, {runs[0].state}"
    return f"{len(runs)} runs" + ("" if done == len(runs) else f", {done} of them finished")


def on_frontier(found: Iterable[Point], score: str | None) -> list[Point]:
    return [p for p in found if "KL" in p.mean and score in p.mean]


def against_beta(found: Iterable[Point]) -> list[Point]:
    """The points that a figure against beta can show: more than one beta, all above 0; none otherwise."""
    shown = [p for p in found if p.beta is not None and p.beta > 0 and "accuracy" in p.mean]
    return shown if len({p.beta for p in shown}) > 1 else []


def start(runs: Iterable[Run], metric: str) -> float | None:
    """The metric before training, mean over runs."""
    values = [run.start[metric] for run in runs if metric in run.start]
    return fmean(values) if values else None


def optimum(folder: Path) -> dict[str, Any]:
    """`optimum.json`, where the best policy at each beta is known; empty where it is not.

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
        raise ConfigError(f"{path}: {type(error).__name__} {error}; its form is {form}") from None
    return found


def why_no_frontier(runs: list[Run]) -> str:
    if not any(run.done for run in runs):
        return "No frontier: no run has finished."
    if not scores(runs):
        return (
            "No frontier: no run scored its completions. With samples.scorer=package.module.function (texts in, "
            "numbers out) and samples.n above 0 the next ones will."
        )
    return (
        "No frontier: no finished run has a KL to the reference. It needs a reference (reference=cached or copy) and "
        "completions (samples.n above 0)."
    )


def name(point: Point) -> str:
    return point.line if point.beta is None else f"{point.line} at beta {point.beta:g}"


def value(point: Point, what: str) -> str:
    spread = f" ± {point.sd[what]:.2g}" if point.seeds > 1 else ""
    return f"{point.mean[what]:.3g}{spread}"


def sentences(drawn: list[Point], score: str) -> list[str]:
    """The best, what is best with less KL, and whether going further paid."""
    best = max(drawn, key=lambda p: p.mean[score])
    said = [f"Best {score}: {name(best)}, {value(best, score)} at a KL of {value(best, 'KL')} nats."]
    for share in (0.5, 0.25):
        limit = float(f"{share * best.mean['KL']:.1g}")
        within = [p for p in drawn if p.mean["KL"] <= limit]
        if within and limit > 0:
            near = max(within, key=lambda p: p.mean[score])
            said.append(f"At a KL of at most {limit:g} nats: {name(near)}, {value(near, score)}.")
            break
    further = [p for p in drawn if p.line == best.line and p.mean["KL"] > best.mean["KL"]]
    worse = [p for p in further if p.mean[score] + p.sd[score] < best.mean[score] - best.sd[score]]
    if worse:
        last = max(worse, key=lambda p: p.mean["KL"])
        said.append(
            f"Going further costs: {name(last)} has a KL of {last.mean['KL']:.3g} nats and only {value(last, score)}."
        )
    return said


def caption(folder: Path, runs: list[Run], found: list[Point], score: str) -> Iterable[str]:
    drawn = on_frontier(found, score)
    yield "Further up is better, further left is nearer to the reference (KL by its square root). At the points: beta."
    seeds = {p.seeds for p in drawn}
    if seeds == {1}:
        yield "One seed each, so there are no error bars."
    else:
        yield f"Points and bars: mean and standard deviation over {' or '.join(map(str, sorted(seeds)))} seeds."
    if again := sum(len(p.runs) - p.seeds for p in drawn):
        told = "run repeats" if again == 1 else "runs repeat"
        yield f"{again} {told} another one, seed included; the last one counts."
    if note := optimum(folder).get("note"):
        yield f"Dashed: {note.rstrip('.')}."
    if left := len(found) - len(drawn):
        yield f"{left} {'point has' if left == 1 else 'points have'} no KL or no {score} and cannot be shown."
    if left := sum(not run.done for run in runs):
        yield f"{left} {'run' if left == 1 else 'runs'} that did not finish {'is' if left == 1 else 'are'} left out."
