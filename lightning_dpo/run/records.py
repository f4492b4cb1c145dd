"""`job.json`, the record of a sweep's job: what runs in its folder and how it ended. Reports read it too."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lightning_dpo.errors import ConfigError

JOB, REFUSED = "job.json", "job.refused.json"
LOCK = ".job.lock"


def read_record(path: Path) -> dict[str, Any]:
    """A record; empty if it is missing or unreadable."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


@contextmanager
def locked(lock: Path, message: str) -> Iterator[None]:
    """Keep other processes out; a killed process loses its lock. Errors: ConfigError(message) if another has it."""
    try:
        with FileLock(lock, timeout=0):
            yield
    except Timeout:
        raise ConfigError(message) from None


def is_running(folder: Path) -> bool:
    """Whether a process is running the job of this folder."""
    try:
        with locked(folder / LOCK, ""):
            return False
    except ConfigError:
        return True
