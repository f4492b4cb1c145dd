"""The report page: the findings and the frontier, then each run. It loads nothing, so it opens anywhere."""

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
from lightning_dpo.report.rows import SAMPLES, Point, Row, Run, points, read, scores, table
from lightning_dpo.report.series import data
from lightning_dpo.run.records import read_record

HERE = Path(__file__).parent
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
    page = Template(_asset("page.html")).substitute(
        title=escape(folder.absolute().name),
        style=_asset("style.css"),
        script=_asset("script.js"),
        data=_json(data(runs, found, score)),
        headline=escape(findings.headline(runs)),
        frontier=_frontier(folder, runs, found, score, figures),
        betas=_betas(figures),
        table=_table(rows),
        unfinished=_unfinished(runs),
        metadata=_metadata(folder, runs),
    )
    path = folder / "report.html"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(page, encoding="utf-8")
    return temporary.replace(path)


def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _json(content: Any) -> str:
    """JSON that cannot end its script element, with null for NaN and infinity; the page skips such points."""
    finite = json.loads(json.dumps(content), parse_constant=lambda _: None)
    text = json.dumps(finite, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _figures(folder: Path, runs: list[Run], found: list[Point], score: str | None) -> dict[str, Any]:
    """{"stem width": (figure, its SVG)}. Narrow figures are for the page only."""
    figures: dict[str, Any] = {}
    drawn = findings.on_frontier(found, score)
    if score and drawn:
        optimum = findings.optimum(folder)
        start = findings.start(runs, SAMPLES + score)
        for width in plots.SIZES:
            figures[f"frontier {width}"] = plots.frontier(drawn, score, start, optimum.get("points"), width)
    if by_beta := findings.against_beta(found):
        start = findings.start(runs, SAMPLES + "length")
        for width in plots.SIZES:
            figures[f"beta {width}"] = plots.against_beta(by_beta, start, width)
    if any(run.curves for run in runs):
        figures["curves wide"] = plots.curves(runs, found)
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


def _figure(figures: dict[str, Any], stem: str, title: str, caption: str) -> str:
    """The figure in both widths, and its caption; all texts are escaped here."""
    drawn = "".join(
        f'<div class="{width}">{inline(figures[f"{stem} {width}"][1], f"{stem}-{width}", escape(title))}</div>'
        for width in plots.SIZES
    )
    return f"<figure>{drawn}<figcaption>{escape(caption)}</figcaption></figure>"


def _frontier(folder: Path, runs: list[Run], found: list[Point], score: str | None, figures: dict[str, Any]) -> str:
    if "frontier wide" not in figures:
        return f'<p class="none">{escape(findings.why_no_frontier(runs))}</p>'
    assert score is not None
    lines = findings.sentences(findings.on_frontier(found, score), score)
    sentences = "".join(f"<p>{escape(line)}</p>" for line in lines)
    caption = " ".join(findings.caption(folder, runs, found, score))
    figure = _figure(figures, "frontier", f"{score} against KL, a line per loss", caption)
    return f'<div class="findings">{sentences}</div>{figure}'


def _betas(figures: dict[str, Any]) -> str:
    if "beta wide" not in figures:
        return '<p class="none">No plot against beta: the finished runs have fewer than two betas.</p>'
    caption = (
        "Bars: one standard deviation over seeds. Dashed: before training. Below the dashed line of log π(chosen), the "
        "chosen responses have become less likely: displacement."
    )
    return _figure(figures, "beta", "accuracy, displacement and length against beta", caption)


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
    text = "" if value is None else escape(str(value))
    if column == "run":
        return f'<th scope="row"><a href="#two" data-run="{row}">{text}</a></th>'
    if column == "state":
        return f'<td><span class="state {text}">{text}</span></td>'
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f'<td class="number" data-value="{value}">{number(value)}</td>'
    return f"<td>{text}</td>"


def number(value: float) -> str:
    """Three significant digits, four from 1000 on, with a minus sign.

    >>> number(0.0004), number(12.345), number(3), number(-0.5), number(1234.5)
    ('0.0004', '12.3', '3', '−0.5', '1234')
    """
    text = f"{value:.4g}" if abs(value) >= 1000 or value == 0 or not math.isfinite(value) else f"{value:.3g}"
    return text.replace("-", "−")


def _unfinished(runs: list[Run]) -> str:
    left = [run for run in runs if not run.done]
    if not left:
        return ""
    items = "".join(
        f"<li><b>{escape(run.name)}</b> <span class='state {escape(run.state)}'>{escape(run.state)}</span>"
        f"{f'<pre>{escape(run.error)}</pre>' if run.error else ''}</li>"
        for run in left
    )
    return f"<h3>Not finished: {len(left)} of {len(runs)}</h3><p>The plots of means omit them.</p><ul>{items}</ul>"


def _metadata(folder: Path, runs: list[Run]) -> str:
    sweep = read_record(folder / "sweep.json")
    commands = [sweep["command"]] if "command" in sweep else _distinct(run.metadata.get("command") for run in runs)
    shown = commands[:5] + ([f"... and {len(commands) - 5} more"] if len(commands) > 5 else [])
    versions = _distinct(
        ", ".join(f"{name} {version}" for name, version in run.metadata.get("versions", {}).items()) for run in runs
    )
    seconds = sum(run.metadata.get("seconds") or 0 for run in runs)
    facts = {
        "Command": "\n".join(shown) or "unknown",
        "Runs": f"{len(runs)}, {sum(run.done for run in runs)} of them finished; {seconds:.0f} s in total",
        "Dates": _dates(runs),
        "Versions": "\n".join(versions) or "unknown",
        "Folder": str(folder.absolute()),
    }
    listed = "".join(f"<dt>{name}</dt><dd><pre>{escape(text)}</pre></dd>" for name, text in facts.items())
    keys = {key: None for run in runs for key in run.config}
    values = {key: [run.config[key] for run in runs if key in run.config] for key in keys}
    common = {key: found[0] for key, found in values.items() if all(value == found[0] for value in found)}
    config = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in common.items())
    shared = f"<details><summary>Configuration that all runs share</summary><pre>{escape(config)}</pre></details>"
    return f"<dl>{listed}</dl>{shared}"


def _distinct(texts: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(text for text in texts if text))


def _dates(runs: list[Run]) -> str:
    files = [run.folder / name for run in runs for name in ("config.yaml", "summary.json", "metrics.csv")]
    times = sorted(datetime.fromtimestamp(path.stat().st_mtime).astimezone() for path in files if path.exists())
    first, last = (f"{time:%Y-%m-%d %H:%M}" for time in (times[0], times[-1])) if times else ("", "")
    return first if first == last else f"{first} to {last}"
