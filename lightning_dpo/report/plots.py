"""The figures: the reward-KL frontier, metrics against beta, the curves of all runs."""

from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lightning_dpo.report.labels import place
from lightning_dpo.report.rows import Point, Run, scores

LINES = ("#1f5fbf", "#b35900", "#00755e", "#a03a8c", "#7a6a00", "#0b7fa8", "#9c2f2f", "#5b4bb5")
"""Distinct for the colour-blind and dark enough for text on white; `style.css` has another set for dark pages."""

INK, FAINT, GRID = "#1c1f24", "#5c636e", "#dfe2e7"
MARKERS = "osD^vPX*"
DASHES = ("-", "--", ":", "-.")
SIZES = {"wide": (10.4, 5.2), "narrow": (4.4, 4.6)}
"""Width and height in inches, for wide and narrow screens."""
LABELLED = 120
"""A frontier with more points than this labels only the best point of each line."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names are not formulas
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "lines.linewidth": 1.8,
    "lines.markersize": 7,
    "figure.constrained_layout.use": True,
}


def look(lines: Sequence[str], line: str) -> tuple[str, str]:
    """Colour and marker of a line, unique for up to 64 lines."""
    turn, i = divmod(lines.index(line), len(LINES))
    return LINES[i], MARKERS[(i + turn) % len(MARKERS)]


def stroke(lines: Sequence[str], line: str) -> dict[str, Any]:
    """Colour and dashes of a line without markers, unique for up to 32 lines."""
    turn, i = divmod(lines.index(line), len(LINES))
    return {"color": LINES[i], "ls": DASHES[turn % len(DASHES)]}


def line_names(points: Iterable[Point]) -> list[str]:
    return list(dict.fromkeys(point.line for point in points))


def _settle(figure: Figure) -> None:
    """Fix the layout of the axes, which every drawing would otherwise compute again."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def frontier(
    points: list[Point], score: str, start: float | None = None, optimum: list[dict] | None = None, width: str = "wide"
) -> Figure:
    """Mean score against KL in nats per completion, a line per loss, bars of one standard deviation over seeds.

    The KL axis is a square root: gains are linear in it at first (Gao et al. 2022, arXiv 2210.10760), and runs far from
    the reference do not squeeze the others.

    Args:
        points: each with a KL and a score.
        score: the name of one of the scorer's numbers.
        start: mean score before training, at KL 0.
        optimum: `kl` and `score` of the best policy at each `beta`, drawn as a dashed line.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZES[width])
        ax, lines = figure.subplots(), line_names(points)
        ax.set(xlabel="KL to the reference (nats per completion)", ylabel=f"{score}, mean over completions")
        texts: list[dict[str, Any]] = []
        if optimum:
            curve = sorted((p["kl"], p["score"]) for p in optimum)
            ax.plot(*zip(*curve, strict=True), "--", color=INK, lw=1.4, zorder=2)
            texts.append({"at": curve[-1], "text": "theoretical optimum", "color": INK})
        if start is not None:
            ax.plot(0, start, "o", mfc="#ffffff", mec=INK, ms=8, zorder=4, clip_on=False)
            texts.append({"at": (0, start), "text": "before training", "color": INK})
        for line in lines:
            colour, marker = look(lines, line)
            own = sorted((p for p in points if p.line == line), key=lambda p: (-(p.beta or 0), p.mean["KL"]))
            kl, reward = ([p.mean[name] for p in own] for name in ("KL", score))
            bars: dict[str, Any] = {"xerr": [p.sd["KL"] for p in own], "yerr": [p.sd[score] for p in own]}
            ax.errorbar(
                kl, reward, **bars, fmt=f"{marker}-", color=colour, mec="#ffffff", mew=0.8, elinewidth=1, zorder=3
            )
            best = max(own, key=lambda p: p.mean[score])
            shown = own if len(points) <= LABELLED else [best]
            texts += [_label(p, score, colour, p is best) for p in shown]
        ax.margins(0.09, 0.12)
        _by_square_root(ax)
        _settle(figure)
        place(ax, texts)
        return figure


def _label(point: Point, score: str, colour: str, best: bool) -> dict[str, Any]:
    """A point's beta; the best point of a line also has the line's name, in bold."""
    text = "" if point.beta is None else f"{point.beta:g}"
    if best:
        text = f"{point.line}  β {text}" if text else point.line
    at = (point.mean["KL"], point.mean[score])
    return {"at": at, "text": text, "color": colour, "weight": "bold" if best else "normal"}


TICKS = (0, 0.1, 0.5, *(m * 10**e for e in range(5) for m in (1, 2, 5)))
"""Ticks of the KL axis; those without room are skipped."""


def _by_square_root(ax: Axes) -> None:
    right = ax.get_xlim()[1]
    ax.set_xscale("function", functions=(lambda kl: np.sqrt(np.clip(kl, 0, None)), np.square))
    ax.set_xlim(0, right)
    ticks = [0.0]
    for tick in TICKS:
        if tick <= right and tick**0.5 - ticks[-1] ** 0.5 >= 0.07 * right**0.5:
            ticks.append(tick)
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


BETA_PANELS = {
    "accuracy": "Accuracy, held-out pairs",
    "chosen": "Change of log π(chosen), nats",
    "length": "Length, tokens",
}


def against_beta(points: list[Point], start_length: float | None = None, width: str = "wide") -> Figure:
    """Accuracy, displacement and length against beta, a line per loss, bars of one standard deviation over seeds."""
    lines = line_names(points)
    shown = [name for name in BETA_PANELS if any(name in p.mean for p in points)]
    wide = width == "wide"
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 3.6) if wide else (4.4, 2.9 * len(shown)))
        grid = list(figure.subplots(*((1, len(shown)) if wide else (len(shown), 1)), squeeze=False).flat)
        for ax, name in zip(grid, shown, strict=True):
            for line in lines:
                colour, marker = look(lines, line)
                own = [p for p in points if p.line == line and name in p.mean]
                x, y, bars = ([*v] for v in zip(*((p.beta, p.mean[name], p.sd[name]) for p in own), strict=True))
                ax.errorbar(x, y, bars, fmt=f"{marker}-", color=colour, mec="#ffffff", mew=0.8, elinewidth=1)
            level = {"chosen": 0.0, "length": start_length}.get(name)
            if level is not None:
                ax.axhline(level, color=FAINT, lw=1, ls="--")
            ax.set(xscale="log", xlabel="beta", title=BETA_PANELS[name])
            betas = sorted({p.beta for p in points if p.beta is not None})
            ax.set_xticks(betas, [f"{b:g}" for b in betas])
            ax.minorticks_off()
            ax.margins(0.1, 0.15)
        _settle(figure)
        for ax, name in zip(grid, shown, strict=True):
            ends = [next((p for p in points if p.line == line and name in p.mean), None) for line in lines]
            place(ax, [{"at": (p.beta, p.mean[name]), "text": p.line, "color": look(lines, p.line)[0], "weight": "bold"}
                       for p in ends if p])  # fmt: skip
        return figure


CURVES = {
    "rewards/chosen": "Reward of the chosen",
    "rewards/rejected": "Reward of the rejected",
    "rewards/margins": "Margin of rewards",
    "rewards/accuracies": "Accuracy",
    "logps/chosen": "log π(chosen), nats",
    "logps/rejected": "log π(rejected), nats",
    "kl": "KL, nats per completion",
}


def curve_titles(runs: list[Run]) -> dict[str, str]:
    """{metric without `train/` or `val/`: title} of the curves that some run has."""
    titles = CURVES | {f"samples/{name}": f"{name}, mean over completions" for name in scores(runs)}
    return {name: title for name, title in titles.items() if any(f"val/{name}" in run.curves for run in runs)}


def curves(runs: list[Run], points: list[Point]) -> Figure:
    """Held-out metrics over the steps, one panel per metric; a run has the colour of its line."""
    lines, titles = line_names(points), curve_titles(runs)
    line_of = {name: point.line for point in points for name in point.runs}
    rows = max(1, -(-len(titles) // 4))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(13, 2.8 * rows))
        grid = list(figure.subplots(rows, 4, squeeze=False).flat)
        for ax, (name, title) in zip(grid, titles.items(), strict=False):
            for run in runs:
                if f"val/{name}" in run.curves:
                    line = line_of.get(run.name)
                    drawn = {"color": FAINT} if line is None else stroke(lines, line)
                    ax.plot(*zip(*run.curves[f"val/{name}"], strict=True), **drawn, lw=1, alpha=0.8)
            ax.set(xlabel="step", title=title)
        for ax in grid[len(titles) :]:
            ax.set_axis_off()
        handles = [Line2D([], [], **stroke(lines, line), label=line) for line in lines]
        columns = max(1, round(110 / (8 + max(map(len, lines), default=0))))
        figure.legend(handles=handles, ncols=columns, loc="outside upper left", frameon=False, labelcolor="linecolor")
        _settle(figure)
        return figure
