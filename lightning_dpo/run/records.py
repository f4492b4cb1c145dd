"""`job.json`: what runs in a folder of a sweep and how it ended. Sweeps write it, reports read it."""

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
    """A record; empty where there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


@contextmanager
def locked(lock: Path, message: str) -> Iterator[None]:
    """Keep other processes out. The lock ends with its process, however that ends.

    Errors: ConfigError with the message where another process has it.
    """
    try:
        with FileLock(lock, timeout=0):
            yield
    except Timeout:
        raise ConfigError(message) from None


def is_running(folder: Path) -> bool:
    """Whether a process runs the job of this folder."""
    try:
        with locked(folder / LOCK, ""):
            return False
    except ConfigError:
        return True
