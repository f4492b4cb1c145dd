"""Progress of a sweep on the terminal, read from the `job.json` files, in whatever processes the jobs run."""

import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning_dpo.run.records import is_running, read_record

Record = dict[str, Any]


class Overview(threading.Thread):
    """Prints a line when a job begins or ends, on the standard output that the sweep started with.

    Args:
        invocation: identifies this start of the sweep; jobs of earlier ones are left out.
        total: number of jobs; None if unknown, as in a search.
    """

    def __init__(self, folder: Path, invocation: str, total: int | None):
        super().__init__(daemon=True)
        self.folder, self.invocation, self.total = folder, invocation, total
        self.shown: dict[Path, str] = {}
        self.at_once = 1
        self.terminal = os.fdopen(os.dup(1), "w", encoding="utf-8")
        self.closed = threading.Event()

    def run(self) -> None:
        while not self.closed.wait(0.5):  # seconds
            self.update()

    def close(self) -> None:
        self.closed.set()
        self.join()
        self.update()
        self.terminal.close()

    def update(self) -> None:
        found = records(self.folder, self.invocation)
        for path, record in sorted(found.items(), key=lambda item: item[1]["state"] == "running"):
            if self.shown.get(path) != record["state"]:
                self.shown[path] = record["state"]
                jobs = [found[p] | {"state": state} for p, state in self.shown.items()]
                print(line(path.parent.name, record, jobs, self.total, self.at_once), file=self.terminal, flush=True)
        self.at_once = max(self.at_once, sum(state == "running" for state in self.shown.values()))


def records(folder: Path, invocation: str) -> dict[Path, Record]:
    """The records of a sweep's jobs by file, in the order in which they began."""
    found = {path: read_record(path) for path in folder.glob("*/job*.json")}
    ours = {path: record for path, record in found.items() if record.get("invocation") == invocation}
    return dict(sorted(ours.items(), key=lambda item: (item[1]["began"], item[0])))


def running(folder: Path, invocation: str) -> set[int]:
    """The process ids of a sweep's running jobs."""
    return {r["pid"] for r in records(folder, invocation).values() if r["state"] == "running" and "pid" in r}


def line(name: str, record: Record, jobs: list[Record], total: int | None, at_once: int = 1) -> str:
    """The line about one job.

    Args:
        jobs: the records of all jobs so far, including this one.
        at_once: see `seconds_left`.
    """
    ended = sum(r["state"] != "running" for r in jobs)
    count = f"{ended}/{total}" if total else str(ended)
    state = "skipped" if record.get("skipped") else record["state"]
    parts = [f"[{count}] {state:8} {name}"]
    if record["state"] == "done" and record["objective"]["value"] is None:
        parts.append("no objective")
    elif record["state"] == "done":
        parts += [f"{record['objective']['name']} {record['objective']['value']:.4g}", f"best {best(jobs):.4g}"]
        if not record.get("skipped"):
            parts.append(format_seconds(record["seconds"]))
    elif record["state"] == "failed":
        parts.append(record["error"][:200])
    if record["state"] != "running" and total and (left := seconds_left(jobs, total, at_once)):
        parts.append(f"{format_seconds(left)} left")
    return "   ".join(parts)


def best(jobs: list[Record]) -> float:
    """The best objective so far: the smallest loss or KL, the largest of any other metric."""
    found = [r["objective"] for r in jobs if r["state"] == "done" and r["objective"]["value"] is not None]
    pick = min if found[0]["name"].endswith(("loss", "kl")) else max
    return pick(objective["value"] for objective in found)


def seconds_left(jobs: list[Record], total: int, at_once: int, now: datetime | None = None) -> float | None:
    """Estimated from the mean time of the finished jobs; None before the first has finished.

    Args:
        at_once: the largest number of jobs seen running together. The current number is too small when a job has just
            ended, which is when a line is printed.
    """
    took = [r["seconds"] for r in jobs if r["state"] == "done" and not r.get("skipped")]
    began = [datetime.fromisoformat(r["began"]) for r in jobs if r["state"] == "running"]
    left = total - len(jobs) + len(began)
    if not took or left <= 0:
        return None
    mean, now = sum(took) / len(took), now or datetime.now(UTC)
    done = sum(min(mean, (now - start).total_seconds()) for start in began)
    return (mean * left - done) / min(left, at_once)


def format_seconds(seconds: float) -> str:
    """
    >>> format_seconds(17.4), format_seconds(100), format_seconds(8000)
    ('17 s', '1 min 40 s', '2 h 13 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def failures(folder: Path, invocation: str) -> list[str]:
    """Three lines about each failed job: folder and overrides, error, log file. A job whose record says "running" has
    been killed if no process holds its lock."""
    messages = []
    for path, record in records(folder, invocation).items():
        killed = record["state"] == "running" and not is_running(path.parent)
        if record["state"] == "failed" or killed:
            error = record.get("error", "its process ended without an error message (killed, or out of memory?)")
            log = record["log"] or path
            messages.append(f"  {path.parent.name}   {' '.join(record['overrides'])}\n    {error}\n    {log}")
    return messages
