"""What a sweep prints while its jobs run, wherever they run: it reads their `job.json` files."""

import os
import threading
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning_dpo.run.records import is_running, read_record

LOOK_EVERY = 0.5
"""Seconds."""

Record = dict[str, Any]


class Overview(threading.Thread):
    """A line for each job that begins or ends, on what was the standard output when the sweep began.

    Args:
        folder: of the sweep.
        invocation: jobs of former ones, which may stand in the same folder, are left out.
        total: number of jobs; None where nobody knows, as in a search.
    """

    def __init__(self, folder: Path, invocation: str, total: int | None):
        super().__init__(daemon=True)
        self.folder, self.invocation, self.total = folder, invocation, total
        self.shown: dict[Path, str] = {}
        self.at_once = 1
        self.terminal = os.fdopen(os.dup(1), "w", encoding="utf-8")
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(LOOK_EVERY):
            self.look()

    def close(self) -> None:
        self.over.set()
        self.join()
        self.look()
        self.terminal.close()

    def look(self) -> None:
        found = records(self.folder, self.invocation)
        for path, record in sorted(found.items(), key=lambda item: item[1]["state"] == "running"):
            if self.shown.get(path) != record["state"]:
                self.shown[path] = record["state"]
                seen = [found[p] | {"state": state} for p, state in self.shown.items()]
                print(line(path.parent.name, record, seen, self.total, self.at_once), file=self.terminal, flush=True)
        self.at_once = max(self.at_once, sum(state == "running" for state in self.shown.values()))


def records(folder: Path, invocation: str) -> dict[Path, Record]:
    """The records of one sweep's jobs, by file, in the order in which they began."""
    found = {path: read_record(path) for path in folder.glob("*/job*.json")}
    ours = {path: record for path, record in found.items() if record.get("invocation") == invocation}
    return dict(sorted(ours.items(), key=lambda item: (item[1]["began"], item[0])))


def running(folder: Path, invocation: str) -> set[int]:
    """The process ids of one sweep's jobs that run."""
    found = records(folder, invocation).values()
    return {r["pid"] for r in found if r["state"] == "running" and "pid" in r}


def line(name: str, record: Record, seen: Iterable[Record], total: int | None, at_once: int = 1) -> str:
    """One job as it is now.

    Args:
        seen: the records of all jobs so far, this one included.
        at_once: see `seconds_left`.
    """
    seen = list(seen)
    ended = sum(r["state"] != "running" for r in seen)
    count = f"{ended}/{total}" if total else str(ended)
    state = "skipped" if record.get("skipped") else record["state"]
    said = f"[{count}] {state:8} {name}"
    if record["state"] == "done":
        said += _result(record, seen)
    if record["state"] == "failed":
        said += f"   {record['error'][:200]}"
    if record["state"] != "running" and total and (left := seconds_left(seen, total, at_once)):
        said += f"   {duration(left)} left"
    return said


def _result(record: Record, seen: list[Record]) -> str:
    name, value = record["objective"]["name"], record["objective"]["value"]
    if value is None:
        return "   no objective"
    said = f"   {name} {value:.4g}   best {best(seen):.4g}"
    return said if record.get("skipped") else f"{said}   {duration(record['seconds'])}"


def best(seen: Iterable[Record]) -> float:
    """The best objective so far; of a loss or a KL the smallest, of anything else the largest."""
    found = [r["objective"] for r in seen if r["state"] == "done" and r["objective"]["value"] is not None]
    pick = min if found[0]["name"].endswith(("loss", "kl")) else max
    return pick(objective["value"] for objective in found)


def seconds_left(seen: list[Record], total: int, at_once: int, now: datetime | None = None) -> float | None:
    """As long as the jobs that have run took on average, for those that have not; None before the first has.

    Args:
        at_once: the most jobs that were seen to run at the same time. Not those of this moment: a line is printed when
            a job ends, and its place is empty then.
    """
    took = [r["seconds"] for r in seen if r["state"] == "done" and not r.get("skipped")]
    running = [r for r in seen if r["state"] == "running"]
    left = total - len(seen) + len(running)
    if not took or left <= 0:
        return None
    mean, now = sum(took) / len(took), now or datetime.now(UTC)
    done = sum(min(mean, (now - datetime.fromisoformat(r["began"])).total_seconds()) for r in running)
    return (mean * left - done) / min(left, at_once)


def duration(seconds: float) -> str:
    """
    >>> duration(17.4), duration(100), duration(8000)
    ('17 s', '1 min 40 s', '2 h 13 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def failures(folder: Path, invocation: str) -> list[str]:
    """Each failed job in three lines: its folder and overrides, its error, where its output stands. A job that says it
    is running while no process has its lock was killed."""
    told = []
    for path, record in records(folder, invocation).items():
        killed = record["state"] == "running" and not is_running(path.parent)
        if record["state"] == "failed" or killed:
            error = record.get("error", "its process ended without a word (killed, or out of memory?)")
            log = record["log"] or path
            told.append(f"  {path.parent.name}   {' '.join(record['overrides'])}\n    {error}\n    {log}")
    return told


def stamp() -> str:
    """A name for a sweep that has none."""
    return time.strftime("%Y-%m-%d_%H-%M-%S")
