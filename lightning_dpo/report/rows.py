"""Read the runs in their folders, finished or not; a table of them; means over seeds."""

import csv
import json
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from omegaconf import OmegaConf

from lightning_dpo.run.identity import may_change
from lightning_dpo.run.records import JOB, is_running, read_record
from lightning_dpo.signatures import leaves

MARKS = ("config.yaml", "summary.json", "metrics.csv", JOB)
"""A folder with one of these files is a run."""

SAMPLES = "val/samples/"

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run; numbers that it has not reached are None or absent.

    `state`: done, running, failed, stopped, killed (recorded as running, but no process has its lock), or unfinished
    (not a sweep's job, without a summary). `config` has dotted keys. `start` and `end` are the metrics of the first and
    the last validation and step, `curves` all of them as (step, value).
    """

    name: str
    folder: Path
    state: str
    error: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    start: dict[str, float] = field(default_factory=dict)
    end: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return self.state == "done"

    def change(self, side: str) -> float | None:
        """Change of a side's mean held-out log-probability since the start, in nats."""
        before, after = (values.get(f"val/logps/{side}") for values in (self.start, self.end))
        return None if before is None or after is None else after - before

    def samples(self) -> list[Row]:
        """The rows of samples.jsonl, without a last line that is incomplete."""
        rows, path = [], self.folder / "samples.jsonl"
        with suppress(FileNotFoundError, json.JSONDecodeError), open(path, encoding="utf-8") as file:
            for line in file:
                rows.append(json.loads(line))
        return rows


def read(folder: Path) -> list[Run]:
    """All runs in or below a folder, finished or not, sorted by path."""
    return [_read(path, folder) for path in sorted(folders(folder), key=_numbered)]


def folders(folder: Path) -> Iterator[Path]:
    """The folders of runs, in no order. Skips what is inside a run, hidden folders, and `*.replaced` of a sweep."""
    if any((folder / mark).exists() for mark in MARKS):
        yield folder
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.name.startswith(".") and not path.name.endswith(".replaced"):
            yield from folders(path)


def _read(path: Path, top: Path) -> Run:
    job, summary = read_record(path / JOB), read_record(path / "summary.json")
    state = job.get("state") or ("done" if summary else "unfinished")
    if state == "running" and not is_running(path):
        state = "killed"
    curves = _curves(path / "metrics.csv")
    config = job.get("config", {})
    if (path / "config.yaml").exists():
        config = leaves(OmegaConf.to_container(OmegaConf.load(path / "config.yaml")))
    return Run(
        name=path.absolute().name if path == top else path.relative_to(top).as_posix(),
        folder=path,
        state=state,
        error=job.get("error", "") if state == "failed" else "",
        config=_named(config, job.get("overrides", [])),
        start=summary.get("metrics_at_start") or {name: curve[0][1] for name, curve in curves.items()},
        end=summary.get("metrics") or {name: curve[-1][1] for name, curve in curves.items()},
        curves=curves,
        summary=summary,
    )


def _named(config: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """`loss._target_: lightning_dpo.losses.dpo` as `loss: dpo`, or as the name in the overrides."""
    typed = dict(o.lstrip("+~").split("=", 1) for o in overrides if "=" in o)
    named = {}
    for key, value in config.items():
        group = key.removesuffix("._target_")
        named[group] = value if group == key else typed.get(group, str(value).rpartition(".")[2])
    return named


def _curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                step = int(row.pop("step") or 0)
                for name, cell in row.items():
                    if cell:
                        curves.setdefault(name, []).append((step, float(cell)))
    return curves


def _numbered(path: Path) -> list[tuple[float, str]]:
    """A sort key that puts the job folder `10-...` after `9-...`."""
    return [(int(n) if (n := part.split("-")[0]).isdigit() else 0, part) for part in path.parts]


def differing(runs: list[Run]) -> list[str]:
    """The keys whose values differ between runs.

    Of keys that change together (beta, loss.beta), only the first is listed. A key that some runs lack, such as a
    parameter of another loss, is compared between the runs that have it.
    """
    values: dict[str, list[str | None]] = {}
    for key in {key: None for run in runs for key in run.config}:
        texts = [json.dumps(run.config[key], sort_keys=True) if key in run.config else None for run in runs]
        if not may_change(key, "report") and len(set(texts) - {None}) > 1:
            values[key] = texts
    keys = sorted(values, key=lambda key: (key.count("."), ("loss", "beta", "seed", key).index(key)))
    return [k for i, k in enumerate(keys) if not any(_repeats(values, k, other) for other in keys[:i])]


def _repeats(values: dict[str, list[str | None]], key: str, other: str) -> bool:
    same_name = key.rpartition(".")[2] == other.rpartition(".")[2]
    return same_name and all(a is None or a == b for a, b in zip(values[key], values[other], strict=True))


def shown(value: Any) -> Any:
    """A value of a configuration as a table shows it: a list or a mapping as it is typed.

    >>> shown([0.9, 0.95]), shown({"path": "a.jsonl", "weight": None}), shown(0.5)
    ('[0.9,0.95]', '{path:a.jsonl,weight:null}', 0.5)
    """
    if not isinstance(value, list | dict):
        return value
    plain = {None: "null", True: "true", False: "false"}

    def text(member: Any) -> str:
        return plain[member] if member is None or isinstance(member, bool) else str(shown(member))

    if isinstance(value, list):
        return f"[{','.join(map(text, value))}]"
    return f"{{{','.join(f'{key}:{text(member)}' for key, member in value.items())}}}"


def scores(runs: list[Run]) -> list[str]:
    """The names of the scorers' numbers, `reward` first."""
    names = {name.removeprefix(SAMPLES): None for run in runs for name in run.end if name.startswith(SAMPLES)}
    return sorted((name for name in names if name != "length"), key=lambda name: name != "reward")


def results(run: Run, score_names: list[str]) -> dict[str, float | None]:
    """The results of a run on held-out pairs.

    `chosen` and `rejected` are changes of the mean log-probability since the run's start in nats, `margin` is their
    difference; unlike rewards, they are comparable across losses and betas.
    """
    chosen, rejected = (run.change(side) for side in ("chosen", "rejected"))
    found = {
        "accuracy": run.end.get("val/rewards/accuracies"),
        "margin": None if chosen is None or rejected is None else chosen - rejected,
        "chosen": chosen,
        "rejected": rejected,
        "KL": run.end.get("val/kl"),
        **{name: run.end.get(SAMPLES + name) for name in score_names},
        "length": run.end.get(SAMPLES + "length"),
    }
    objective = run.summary.get("objective") or {}
    if objective.get("name") not in ("val/rewards/accuracies", "val/kl", *(SAMPLES + n for n in score_names), None):
        found[objective["name"]] = objective["value"]
    return found


def table(runs: list[Run]) -> list[Row]:
    """One row per run: its name and state, the keys that differ, its results. Empty columns are left out."""
    keys, names = differing(runs), scores(runs)
    rows = [
        {"run": run.name, "state": run.state, **{k: shown(run.config.get(k)) for k in keys}, **results(run, names)}
        for run in runs
    ]
    columns = [k for k in {k: None for row in rows for k in row} if any(row.get(k) is not None for row in rows)]
    return [{column: row.get(column) for column in columns} for row in rows]


@dataclass(frozen=True)
class Point:
    """Finished runs that differ only in their seed.

    `line`: the settings shared with points at other betas. `mean` and `sd` (over seeds; 0 for a single one) have the
    names of `results`. Of runs with the same seed only the last one counts.
    """

    line: str
    beta: float | None
    runs: tuple[str, ...]
    seeds: int
    mean: dict[str, float]
    sd: dict[str, float]


def points(runs: list[Run]) -> list[Point]:
    """Means of the finished runs over their seeds, by line and then from the largest beta to the smallest."""
    keys, names = [key for key in differing(runs) if key not in ("loss", "beta", "seed")], scores(runs)
    groups: dict[tuple[str, float | None], list[Run]] = {}
    for run in runs:
        if run.done:
            line = [
                str(run.config.get("loss", "runs")),
                *(f"{k}={shown(run.config[k])}" for k in keys if k in run.config),
            ]
            beta = run.config.get("beta")
            groups.setdefault((" ".join(line), None if beta is None else float(beta)), []).append(run)
    found = []
    for (line, beta), members in groups.items():
        counted = {run.config.get("seed", run.name): run for run in members}
        columns: dict[str, list[float]] = {}
        for run in counted.values():
            for name, value in results(run, names).items():
                if value is not None and math.isfinite(value):
                    columns.setdefault(name, []).append(value)
        mean = {name: fmean(values) for name, values in columns.items()}
        sd = {name: stdev(values) if len(values) > 1 else 0.0 for name, values in columns.items()}
        found.append(Point(line, beta, tuple(run.name for run in members), len(counted), mean, sd))
    order = {line: i for i, line in enumerate(dict.fromkeys(p.line for p in found))}
    return sorted(found, key=lambda p: (order[p.line], -(p.beta or 0)))
