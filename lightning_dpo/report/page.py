"""The report page: the findings and the frontier, then each run. It loads nothing, so it opens anywhere."""

import csv
import json
import math
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from lightning_dpo.errors import ConfigError
from lightning_dpo.report import findings, plots
from lightning_dpo.report.output import inline, png, svg
from lightning_dpo.report.rows import SAMPLES, Point, Row, Run, points, read, scores, table
from lightning_dpo.report.series import data
from lightning_dpo.run.records import read_record

EXPLAINED = {
    "accuracy": "share of held-out pairs whose chosen response has the higher reward; ties count as wrong",
    "margin": "change of log π(chosen) - log π(rejected) since the start, nats",
    "chosen": "change of log π(chosen) since the start, nats; negative: displacement",
    "rejected": "change of log π(rejected) since the start, nats",
    "KL": "KL to the reference, nats per completion, estimated from sampled completions",
    "length": "mean length of sampled completions, tokens",
}


def write(folder: Path, score: str | None = None) -> Path:
    """Write `report.html`, `summary.csv` and `plots/` into a folder of runs or into that of a single run.

    Args:
        score: the scorer's number on the frontier; by default `reward`, or else the first one.

    Returns the path of the page. Errors: ConfigError if there is no run, or no such score.
    """
    runs = read(folder) if folder.is_dir() else []
    if not runs:
        raise ConfigError(f"{folder}: no runs here or below (looked for config.yaml, metrics.csv and summary.json)")
    names = scores(runs)
    if score is not None and score not in names:
        raise ConfigError(f"score={score}: no run has it; allowed: {', '.join(names) or 'none, no run has a scorer'}")
    score = score or next(iter(names), None)
    rows, found = table(runs), points(runs)
    figures = _figures(folder, runs, found, score)
    _files(folder, rows, figures)
    page = Environment(autoescape=True, trim_blocks=True, undefined=StrictUndefined).from_string(_asset("page.html"))
    html = page.render(
        folder=folder,
        runs=runs,
        rows=rows,
        points=found,
        score=score,
        findings=findings,
        explained=EXPLAINED,
        number=number,
        frontier=_inline(figures, "frontier", f"{score} against KL, a line per loss"),
        betas=_inline(figures, "beta", "accuracy, displacement and length against beta"),
        facts=_facts(folder, runs),
        shared=_shared(runs),
        data=_json(data(runs, found, score)),
        style=_asset("style.css"),
        script=_asset("script.js"),
    )
    path = folder / "report.html"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(html, encoding="utf-8")
    return temporary.replace(path)


def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _json(content: Any) -> str:
    """JSON that cannot end its script element, with null for NaN and infinity; the page skips such points."""
    finite = json.loads(json.dumps(content), parse_constant=lambda _: None)
    text = json.dumps(finite, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _figures(folder: Path, runs: list[Run], found: list[Point], score: str | None) -> dict[tuple[str, str], Any]:
    """{(name, width): (figure, its SVG)}. Narrow figures are for the page only."""
    figures: dict[tuple[str, str], Any] = {}
    drawn = findings.on_frontier(found, score)
    if score and drawn:
        optimum = findings.optimum(folder)
        start = findings.start(runs, SAMPLES + score)
        for width in plots.SIZES:
            figures["frontier", width] = plots.frontier(drawn, score, start, optimum.get("points"), width)
    if by_beta := findings.against_beta(found):
        start = findings.start(runs, SAMPLES + "length")
        for width in plots.SIZES:
            figures["beta", width] = plots.against_beta(by_beta, start, width)
    if any(run.curves for run in runs):
        figures["curves", "wide"] = plots.curves(runs, found)
    return {key: (figure, svg(figure, " ".join(key))) for key, figure in figures.items()}


def _files(folder: Path, rows: list[Row], figures: dict[tuple[str, str], Any]) -> None:
    with open(folder / "summary.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (folder / "plots").mkdir(exist_ok=True)
    for (name, width), (figure, text) in figures.items():
        if width == "wide":
            (folder / "plots" / f"{name}.svg").write_text(text, encoding="utf-8")
            (folder / "plots" / f"{name}.png").write_bytes(png(figure))


def _inline(figures: dict[tuple[str, str], Any], name: str, title: str) -> dict[str, str]:
    """{width: SVG for the page}, empty if the figure was not drawn."""
    return {w: inline(figures[name, w][1], f"{name}-{w}", title) for w in plots.SIZES if (name, w) in figures}


def number(value: float) -> str:
    """Three significant digits, four from 1000 on, with a minus sign.

    >>> number(0.0004), number(12.345), number(3), number(-0.5), number(1234.5)
    ('0.0004', '12.3', '3', '−0.5', '1234')
    """
    text = f"{value:.4g}" if abs(value) >= 1000 or value == 0 or not math.isfinite(value) else f"{value:.3g}"
    return text.replace("-", "−")


def _facts(folder: Path, runs: list[Run]) -> dict[str, str]:
    sweep = read_record(folder / "sweep.json")
    commands = [sweep["command"]] if "command" in sweep else _distinct(run.summary.get("command") for run in runs)
    shown = commands[:5] + ([f"... and {len(commands) - 5} more"] if len(commands) > 5 else [])
    versions = _distinct(
        ", ".join(f"{name} {version}" for name, version in run.summary.get("versions", {}).items()) for run in runs
    )
    seconds = sum(run.summary.get("seconds") or 0 for run in runs)
    return {
        "Command": "\n".join(shown) or "unknown",
        "Runs": f"{len(runs)}, {sum(run.done for run in runs)} of them finished; {seconds:.0f} s in total",
        "Dates": _dates(runs),
        "Versions": "\n".join(versions) or "unknown",
        "Folder": str(folder.absolute()),
    }


def _shared(runs: list[Run]) -> str:
    """The configuration that all runs share, one key per line."""
    keys = {key: None for run in runs for key in run.config}
    values = {key: [run.config[key] for run in runs if key in run.config] for key in keys}
    common = {key: found[0] for key, found in values.items() if all(value == found[0] for value in found)}
    return "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in common.items())


def _distinct(texts: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(text for text in texts if text))


def _dates(runs: list[Run]) -> str:
    files = [run.folder / name for run in runs for name in ("config.yaml", "summary.json", "metrics.csv")]
    times = sorted(datetime.fromtimestamp(path.stat().st_mtime).astimezone() for path in files if path.exists())
    first, last = (f"{time:%Y-%m-%d %H:%M}" for time in (times[0], times[-1])) if times else ("", "")
    return first if first == last else f"{first} to {last}"
