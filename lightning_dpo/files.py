"""Atomic files and folders, files that grow by lines, safe names."""

import glob
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_dpo.errors import ConfigError


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A temporary folder that replaces `final`, flushed to disk, when the block ends without an error.

    Leftovers of killed processes are removed, so the caller must hold a lock.
    """
    for left in final.parent.glob(f".{glob.escape(final.name)}.????????"):
        shutil.rmtree(left)
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}")
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.rglob("*"):
            fsync(path)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        fsync(final.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def check_writable(folder: Path, setting: str, file: str | None = None) -> None:
    """Make a folder, if there is none.

    Args:
        setting: the key and its value, for the message.
        file: made in the folder and kept; None: one is made and removed.

    Errors: ConfigError if the folder cannot be made, or no file can be made in it.
    """
    probe = folder / (file or f".{uuid.uuid4().hex[:8]}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        if file is None:
            probe.unlink()
    except OSError as error:
        found = f"{error.strerror} ({error.filename if file or error.filename != str(probe) else folder})"
        raise ConfigError(f"{setting}: {found}; name a folder that can be written") from None


def fsync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class LineFile:
    """A text file that grows by lines. Its state in a checkpoint is the number of lines, to which it is cut back."""

    def __init__(self, path: Path):
        self.path = path
        self.lines = path.read_bytes().count(b"\n") if path.exists() else 0

    def append(self, lines: Iterable[str]) -> None:
        lines = list(lines)
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            file.writelines(lines)
        self.lines += len(lines)

    def cut(self, lines: int) -> None:
        """Keep the first `lines`; a file that does not exist starts anew.

        Errors: ValueError if it has fewer.
        """
        if not self.path.exists():
            self.lines = 0
            return
        found = self.path.read_bytes().splitlines(keepends=True)
        if len(found) < lines:
            raise ValueError(f"{self.path}: it has {len(found)} lines, and had {lines} when the checkpoint was written")
        if len(found) > lines:
            temporary = self.path.with_name(self.path.name + ".tmp")
            temporary.write_bytes(b"".join(found[:lines]))
            os.replace(temporary, self.path)
        self.lines = lines


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def matching(pattern: str) -> list[str]:
    """The files that a glob such as data/train-*.parquet stands for, sorted; ** stands for folders at any depth."""
    return sorted(filter(os.path.isfile, glob.glob(os.path.expanduser(pattern), recursive=True)))


def is_saved_table(folder: Path) -> bool:
    """Whether the library `datasets` has saved a data set in this folder, or several splits of one."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def write_json(path: Path, content: dict) -> None:
    """Write readable JSON by way of a temporary file."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    fsync(temporary)
    os.replace(temporary, path)


LONGEST = 120
"""Bytes of a name; file systems allow 255."""


def slug(text: Any) -> str:
    """One safe path component; a long name ends in a hash of the whole.

    >>> slug("../../etc/passwd"), slug("beta 0.1, loss=ipo")
    ('etc-passwd', 'beta-0.1-loss-ipo')
    >>> len(slug("a" * 200)), slug("a" * 200) == slug("a" * 201)
    (120, False)
    """
    name = re.sub(r"[^\w.+=-]+", "-", re.sub(r"=", "-", str(text))).strip("-.") or "run"
    if len(name.encode()) <= LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name.encode()[: LONGEST - len(digest) - 1].decode(errors='ignore')}-{digest}"
