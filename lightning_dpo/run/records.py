"""`job.json`, the record of a sweep's job: what runs in its folder and how it ended. Reports read it too."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lightning_dpo.errors import ConfigError, DataError

JOB, REFUSED = "job.json", "job.refused.json"
LOCK, RUN_LOCK = ".job.lock", ".run.lock"


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


@contextmanager
def removed_if_refused(folder: Path) -> Iterator[None]:
    """Remove the folder of a refused command that holds its log alone, and the empty folders above it in outputs/."""
    try:
        yield
    except (ConfigError, DataError):
        if folder.is_dir() and {path.name for path in folder.iterdir()} <= {RUN_LOCK, "train.log"}:
            with suppress(ConfigError), locked(folder / RUN_LOCK, ""):  # another process may have just begun here
                shutil.rmtree(folder)
            names = [path.name for path in folder.parents]
            with suppress(OSError):
                for above in folder.parents[: names.index("outputs") + 1] if "outputs" in names else ():
                    above.rmdir()
        raise


def is_running(folder: Path) -> bool:
    """Whether a process is running the job of this folder."""
    try:
        with locked(folder / LOCK, ""):
            return False
    except ConfigError:
        return True
