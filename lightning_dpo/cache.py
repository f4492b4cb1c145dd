"""A cache on disk, found by content."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from safetensors import SafetensorError

from lightning_dpo.errors import ConfigError
from lightning_dpo.files import whole_folder

log = logging.getLogger(__name__)

T = TypeVar("T")

DAMAGE = (OSError, ValueError, KeyError, SafetensorError)
"""Errors of reading an entry whose files were truncated or altered."""


class Cache:
    """Entries are folders named by the hash of their key. They are written atomically, under a lock that makes a second
    process wait, and a damaged entry is computed again."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()

    def path(self, key: dict[str, Any]) -> Path:
        return self.folder / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]

    @contextmanager
    def lock(self, key: dict[str, Any]) -> Iterator[None]:
        """Held while an entry is read and, if it is missing, written. Errors: ConfigError if it cannot be written."""
        lock = FileLock(self.path(key).with_suffix(".lock"))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            found = f"{error.strerror} ({error.filename})"
            raise ConfigError(f"the cache {self.folder} cannot be written: {found}; type another cache_dir") from None
        try:
            yield
        finally:
            lock.release()

    def read(self, key: dict[str, Any], read: Callable[[Path], T]) -> T | None:
        """The entry; None if it is missing, or damaged and removed."""
        entry = self.path(key)
        if not entry.exists():
            return None
        try:
            return read(entry)
        except DAMAGE as error:
            log.warning("the cache entry %s is damaged (%s); computing it again", entry, error)
            shutil.rmtree(entry)
            return None

    def write(self, key: dict[str, Any], write: Callable[[Path], None]) -> None:
        """Write the entry; the caller holds the lock."""
        with whole_folder(self.path(key)) as folder:
            write(folder)

    def entry(self, key: dict[str, Any], read: Callable[[Path], T], write: Callable[[Path], None]) -> T:
        """The entry, written if it is missing."""
        with self.lock(key):
            found = self.read(key, read)
            if found is None:
                self.write(key, write)
                found = read(self.path(key))
            return found
