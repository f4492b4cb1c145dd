"""A cache on disk, found by content."""

import errno
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

from lightning_dpo.errors import DataError
from lightning_dpo.files import whole_folder

log = logging.getLogger(__name__)

T = TypeVar("T")

DAMAGE = (OSError, ValueError, KeyError, SafetensorError)
"""Errors of reading an entry whose files were truncated or altered."""

UNNAMED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
"""Errors of writing to a full or read-only disk, which may name no file."""


class Outdated(ValueError):
    """An entry of another version of the code that reads it."""


class Cache:
    """Entries are folders named by the hash of their key. They are written atomically, under a lock that makes a second
    process wait, and a damaged entry is computed again. `setting` is the key that names the folder, for messages."""

    def __init__(self, folder: str | Path, setting: str):
        self.folder, self.setting = Path(folder).expanduser(), setting

    def path(self, key: dict[str, Any]) -> Path:
        return self.folder / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]

    @contextmanager
    def lock(self, key: dict[str, Any]) -> Iterator[None]:
        """Held while an entry is read and, if it is missing, written. Errors: DataError if it cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path(key).with_suffix(".lock")):
                yield
        except OSError as error:
            place, folder = Path(str(error.filename or self.folder)).absolute(), self.folder.absolute()
            own = place.is_relative_to(folder) or folder.is_relative_to(place)
            if not own or (error.filename is None and error.errno not in UNNAMED):
                raise
            what = f"{self.setting}={self.folder}: {error.strerror or error} ({place})"
            raise DataError(f"{what}; name a folder that can be written") from error

    def read(self, key: dict[str, Any], read: Callable[[Path], T]) -> T | None:
        """The entry; None if it is missing, or damaged or outdated and removed."""
        entry = self.path(key)
        if not entry.exists():
            return None
        try:
            return read(entry)
        except DAMAGE as error:
            level = logging.INFO if isinstance(error, Outdated) else logging.WARNING
            log.log(level, "the cache entry %s is damaged or outdated (%s); computing it again", entry, error)
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
