"""The page: what was found, the frontier first, then each run. It loads nothing, so it opens anywhere and for ever."""

import csv
import json
import math
from collections.abc import Iterable
from datetime import datetime
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from lightning_dpo.errors import ConfigError
from lightning_dpo.report import findings, plots
from lightning_dpo.report.output import inline, png, svg
from lightning_dpo.report.rows import Point, Row, Run, points, read, scores, table
from lightning_dpo.report.series import data
from lightning_dpo.run.records import read_record

HERE = Path(__file__).parent
EXPLAINED = {
    "accuracy": "share of held-out pairs whose chosen response has the higher reward; a tie counts as wrong",
    "margin": "growth of log π(chosen) - log π(rejected) since the start, nats",
    "chosen": "change of log π(chosen) since the start, nats; negative: displaced",
    "rejected": "change of log π(rejected) since the start, nats",
    "KL": "KL to the reference, nats per completion, from sampled completions",
    "length": "mean length of sampled completions, tokens",
}


def write(folder: Path, score: str | None = None) -> Path:
    """Write `report.html`, `summary.csv` and `plots/` into a folder of runs, or into a run's own; returns the page.

    Args:
        score: which of the scorer's numbers is the frontier's; `reward`, or else the first.

    Errors: ConfigError where there is no run, or no such score.
    """
    runs = read(folder) if folder.is_dir() else []
    if not runs:
        raise ConfigError(f"{folder}: no run (config.yaml, metrics.csv, summary.json) in it or below it")
    names = scores(runs)
    if score is not None and score not in names:
        raise ConfigError(f"score={score}: no run has it; allowed: {', '.join(names) or 'none, no run has a scorer'}")
    score = score or next(iter(names), None)
    rows, found = table(runs), points(runs)
    figures = _figures(folder, runs, found, score)
    _files(folder, rows, figures)
    page = Template(_asset("page.html")).substitute(
        title=escape(folder.absolute().name),
        style=_asset("style.css"),
        script=_asset("script.js"),
        data=_json(data(runs, plots.curve_titles(names), found, score)),
        headline=escape(findings.headline(runs)),
        frontier=_frontier(folder, runs, found, score, figures),
        betas=_betas(found, figures),
        table=_table(rows),
        failed=_failed(runs),
        about=_about(folder, runs),
    )
    path = folder / "report.html"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(page, encoding="utf-8")
    return temporary.replace(path)


def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _json(content: Any) -> str:
    """JSON that cannot end the script element that it stands in."""
    text = json.dumps(_finite(content), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _finite(content: Any) -> Any:
    """JSON has no NaN; the page leaves out points that are null."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    return [_finite(value) for value in content] if isinstance(content, list | tuple) else content


def _figures(folder: Path, runs: list[Run], found: list[Point], score: str | None) -> dict[str, Any]:
    """By file name; the narrow ones are for the page only."""
    figures: dict[str, Any] = {}
    drawn = findings.on_frontier(found, score)
    if score and drawn:
        optimum = findings.optimum(folder)
        start = findings.start(runs, plots.SAMPLES + score)
        for width in plots.SIZES:
            figures[f"frontier {width}"] = plots.frontier(drawn, score, start, optimum.get("points"), width)
    by_beta = findings.against_beta(found)
    if by_beta:
        start = findings.start(runs, plots.SAMPLES + "length")
        for width in plots.SIZES:
            figures[f"beta {width}"] = plots.against_beta(by_beta, start, width)
    if any(run.curves for run in runs):
        figures["curves wide"] = plots.curves(runs, found, plots.curve_titles(scores(runs)))
    return {name: (figure, svg(figure, name)) for name, figure in figures.items()}


def _files(folder: Path, rows: list[Row], figures: dict[str, Any]) -> None:
    with open(folder / "summary.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (folder / "plots").mkdir(exist_ok=True)
    for name, (figure, text) in figures.items():
        stem, width = name.split()
        if width == "wide":
            (folder / "plots" / f"{stem}.svg").write_text(text, encoding="utf-8")
            (folder / "plots" / f"{stem}.png").write_bytes(png(figure))


def _both_widths(figures: dict[str, Any], stem: str, title: str) -> str:
    drawn = (inline(figures[f"{stem} {width}"][1], f"{stem}-{width}", escape(title)) for width in plots.SIZES)
    return "".join(f'<div class="{width}">{svg}</div>' for width, svg in zip(plots.SIZES, drawn, strict=True))


def _frontier(folder: Path, runs: list[Run], found: list[Point], score: str | None, figures: dict[str, Any]) -> str:
    if "frontier wide" not in figures:
        return f'<p class="none">{escape(findings.why_no_frontier(runs))}</p>'
    assert score is not None
    drawn = findings.on_frontier(found, score)
    said = "".join(f"<p>{escape(text)}</p>" for text in findings.sentences(drawn, score))
    note = escape(" ".join(findings.caption(folder, runs, found, score)))
    picture = _both_widths(figures, "frontier", f"{score} against KL, a line per loss")
    return f'<div class="said">{said}</div><figure>{picture}<figcaption>{note}</figcaption></figure>'


def _betas(found: list[Point], figures: dict[str, Any]) -> str:
    if "beta wide" not in figures:
        return '<p class="none">The finished runs have one beta, or none: there is nothing to draw against it.</p>'
    note = (
        "Bars: one standard deviation over seeds. Dashed: before training. Where log π(chosen) falls below it, the "
        "chosen responses have become rarer: displacement."
    )
    picture = _both_widths(figures, "beta", "accuracy, displacement and length against beta")
    return f"<figure>{picture}<figcaption>{note}</figcaption></figure>"


def _table(rows: list[Row]) -> str:
    head = "".join(
        f'<th scope="col" title="{escape(EXPLAINED.get(name, name))}"><button>{escape(name)}</button></th>'
        for name in rows[0]
    )
    body = "".join(
        f"<tr>{''.join(_cell(name, i, value) for name, value in row.items())}</tr>" for i, row in enumerate(rows)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(column: str, row: int, value: Any) -> str:
    if column == "run":
        return f'<th scope="row"><a href="#two" data-run="{row}">{escape(str(value))}</a></th>'
    if column == "state":
        return f'<td><span class="state {escape(str(value))}">{escape(str(value))}</span></td>'
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f'<td class="number" data-value="{value}">{number(value)}</td>'
    return f"<td>{'' if value is None else escape(str(value))}</td>"


def number(value: float) -> str:
    """
    >>> number(0.0004), number(12.345), number(3), number(-0.5), number(1234.5)
    ('0.0004', '12.3', '3', '−0.5', '1234')
    """
    text = f"{value:.4g}" if abs(value) >= 1000 or value == 0 or not math.isfinite(value) else f"{value:.3g}"
    return text.replace("-", "−")


def _failed(runs: list[Run]) -> str:
    left = [run for run in runs if not run.done]
    if not left:
        return ""
    items = "".join(
        f"<li><b>{escape(run.name)}</b> <span class='state {escape(run.state)}'>{escape(run.state)}</span>"
        f"{f'<pre>{escape(run.error)}</pre>' if run.error else ''}</li>"
        for run in left
    )
    return f"<h3>Not finished: {len(left)} of {len(runs)}</h3><p>The plots of means leave them out.</p><ul>{items}</ul>"


def _about(folder: Path, runs: list[Run]) -> str:
    sweep = read_record(folder / "sweep.json")
    commands = [sweep["command"]] if "command" in sweep else _distinct(run.about.get("command") for run in runs)
    shown = commands[:5] + ([f"... and {len(commands) - 5} more"] if len(commands) > 5 else [])
    versions = _distinct(
        ", ".join(f"{name} {version}" for name, version in run.about.get("versions", {}).items()) for run in runs
    )
    seconds = sum(run.about.get("seconds") or 0 for run in runs)
    facts = {
        "Command": "\n".join(shown) or "not known",
        "Runs": f"{len(runs)}, {sum(run.done for run in runs)} of them finished; {seconds:.0f} s in all",
        "Dates": _dates(runs),
        "Versions": "\n".join(versions) or "not known",
        "Folder": str(folder.absolute()),
    }
    listed = "".join(f"<dt>{name}</dt><dd><pre>{escape(text)}</pre></dd>" for name, text in facts.items())
    keys = {key: None for run in runs for key in run.config}
    values = {key: [run.config[key] for run in runs if key in run.config] for key in keys}
    common = {key: found[0] for key, found in values.items() if all(value == found[0] for value in found)}
    config = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in common.items())
    shared = f"<details><summary>The configuration that all runs share</summary><pre>{escape(config)}</pre></details>"
    return f"<dl>{listed}</dl>{shared}"


def _distinct(texts: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(text for text in texts if text))


def _dates(runs: list[Run]) -> str:
    files = [run.folder / name for run in runs for name in ("config.yaml", "summary.json", "metrics.csv")]
    times = sorted(datetime.fromtimestamp(path.stat().st_mtime).astimezone() for path in files if path.exists())
    first, last = (f"{time:%Y-%m-%d %H:%M}" for time in (times[0], times[-1])) if times else ("", "")
    return first if first == last else f"{first} to {last}"
