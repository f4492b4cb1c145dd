"""Files that appear whole or not at all."""

import glob
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A temporary folder beside `final`, which takes its place, flushed, when the block ends without an error.

    What a process that was killed has left is removed: the caller keeps others out, by a lock.
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


def fsync(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def keep_lines(path: Path, count: int) -> None:
    """Cut a text file after its first `count` lines.

    Errors: ValueError if it has fewer.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if len(lines) < count:
        raise ValueError(f"{path}: it has {len(lines)} lines, and had {count} when the checkpoint was written")
    if len(lines) > count:
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_bytes(b"".join(lines[:count]))
        os.replace(temporary, path)


def write_json(path: Path, content: dict) -> None:
    """Write readable JSON by way of a temporary file."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    fsync(temporary)
    os.replace(temporary, path)
