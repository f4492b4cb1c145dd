"""The figures: the reward-KL frontier, what beta does, the curves of all runs. A page may change their colours."""

from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lightning_dpo.report.labels import place
from lightning_dpo.report.rows import SAMPLES, Point, Run

LINES = ("#1f5fbf", "#b35900", "#00755e", "#a03a8c", "#7a6a00", "#0b7fa8", "#9c2f2f", "#5b4bb5")
"""One a line, told apart by people who see colours differently, dark enough for text on white; a line's marker says it
too. On the page `style.css` has a second set for dark."""

INK, FAINT, GRID = "#1c1f24", "#5c636e", "#dfe2e7"
MARKERS = "osD^vPX*"
DASHES = ("-", "--", ":", "-.")
SIZES = {"wide": (10.4, 5.2), "narrow": (4.4, 4.6)}
"""Inches, for the two widths of a screen; the same texts."""
LABELLED = 120
"""Points of a frontier that each have their beta; of more only the best of a line has."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names are not formulas
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
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
    """Colour and marker of one of the lines; of 64 no two have both."""
    turn, i = divmod(lines.index(line), len(LINES))
    return LINES[i], MARKERS[(i + turn) % len(MARKERS)]


def stroke(lines: Sequence[str], line: str) -> dict[str, Any]:
    """Colour and dashes of one of the lines, where it has no markers; of 32 no two have both."""
    turn, i = divmod(lines.index(line), len(LINES))
    return {"color": LINES[i], "ls": DASHES[turn % len(DASHES)]}


def line_names(points: Iterable[Point]) -> list[str]:
    return list(dict.fromkeys(point.line for point in points))


def _settle(figure: Figure) -> None:
    """Lay the axes out, once: each further drawing would do it again."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def frontier(
    points: list[Point], score: str, start: float | None = None, optimum: list[dict] | None = None, width: str = "wide"
) -> Figure:
    """Mean score against KL, in nats per completion: a line per loss through its betas, bars of one standard deviation
    over seeds. KL is drawn by its square root, in which gains grow linearly at first (Gao et al. 2022, arXiv
    2210.10760) and runs that have left the reference far behind do not push the others together.

    Args:
        points: those with a KL and a score.
        score: which of the scorer's numbers.
        start: mean score before training, at KL 0.
        optimum: `kl` and `score` of the best policy at each `beta`, drawn as a dashed line.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZES[width])
        ax, lines = figure.subplots(), line_names(points)
        ax.set(xlabel="KL to the reference (nats per completion)", ylabel=f"{score}, mean over completions")
        texts: list[dict[str, Any]] = []
        if optimum:
            best = sorted(optimum, key=lambda p: p["kl"])
            ax.plot([p["kl"] for p in best], [p["score"] for p in best], "--", color=INK, lw=1.4, zorder=2)
            texts.append({"at": (best[-1]["kl"], best[-1]["score"]), "text": "theoretical optimum", "color": INK})
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
            peak = max(own, key=lambda p: p.mean[score])
            for point in own:
                if point is not peak and len(points) > LABELLED:
                    continue
                name = f"{line}  " if point is peak else ""
                beta = "" if point.beta is None else f"β {point.beta:g}" if name else f"{point.beta:g}"
                weight = "bold" if name else "normal"
                at = (point.mean["KL"], point.mean[score])
                texts.append({"at": at, "text": (name + beta).strip(), "color": colour, "weight": weight})
        ax.margins(0.09, 0.12)
        _by_square_root(ax)
        _settle(figure)
        place(ax, texts)
        return figure


TICKS = (0, 0.1, 0.5, *(m * 10**e for e in range(5) for m in (1, 2, 5)))
"""Of KL, as many of them as there is room for."""


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


def curve_titles(score_names: Iterable[str]) -> dict[str, str]:
    """The metrics that are shown over the steps, without `train/` or `val/`, and their titles."""
    return CURVES | {(SAMPLES + name).removeprefix("val/"): f"{name}, mean over completions" for name in score_names}


def curves(runs: list[Run], points: list[Point], titles: dict[str, str]) -> Figure:
    """Held-out metrics over the steps, a panel each; a run has the colour of its line."""
    lines = line_names(points)
    line_of = {name: point.line for point in points for name in point.runs}
    shown = {name: title for name, title in titles.items() if any(f"val/{name}" in run.curves for run in runs)}
    rows = max(1, -(-len(shown) // 4))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(13, 2.8 * rows))
        grid = list(figure.subplots(rows, 4, squeeze=False).flat)
        for ax, (name, title) in zip(grid, shown.items(), strict=False):
            for run in runs:
                if f"val/{name}" in run.curves:
                    line = line_of.get(run.name)
                    drawn = {"color": FAINT} if line is None else stroke(lines, line)
                    ax.plot(*zip(*run.curves[f"val/{name}"], strict=True), **drawn, lw=1, alpha=0.8)
            ax.set(xlabel="step", title=title)
        for ax in grid[len(shown) :]:
            ax.set_axis_off()
        named = [Line2D([], [], **stroke(lines, line), label=line) for line in lines]
        beside = max(1, round(110 / (8 + max(map(len, lines), default=0))))
        figure.legend(handles=named, ncols=beside, loc="outside upper left", frameon=False, labelcolor="linecolor")
        _settle(figure)
        return figure
