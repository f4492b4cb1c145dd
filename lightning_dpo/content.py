"""What the files hold that a configuration names: with other content it is another run, whatever the path says."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

FILES = ("model.path", "reference.path", "data.train", "data.val", "data.chat_template")
"""Keys that may name files or folders, at any depth below."""
BESIDE_PATH = ("weight", "subset", "split", "revision")
"""What a source says of itself beside its path: no files."""
READ = (".safetensors", ".json", ".jinja", ".model", ".txt", ".py")
"""What is read of a folder: weights, configuration and tokenizer of a model, the state of a saved data set."""


def content(config: Mapping[str, Any]) -> dict[str, str]:
    """`{"<key> (content)": hash}` of each local file or folder that the configuration {dotted key: value} names.

    A hub id is taken at its word, and a stream, which may be larger than the disk, is not read. A file that cannot be
    read has no hash: the run says why.
    """
    found = {}
    for key, value in config.items():
        name = next((name for name in FILES if key == name or key.startswith(f"{name}.")), None)
        if name is None or (name == "data.train" and config.get("data.streaming")):
            continue
        parent, _, last = key.rpartition(".")
        if last in BESIDE_PATH and f"{parent}.path" in config:
            continue
        hashes = [digest for path in _paths(value) if (digest := _content(Path(path).expanduser()))]
        if hashes:
            found[f"{key} (content)"] = " ".join(hashes)
    return found


def _paths(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for entry in value:
            yield from _paths(entry.get("path") if isinstance(entry, dict) else entry)


def _content(path: Path) -> str | None:
    try:
        if os.path.isfile(path):  # False, and no error, where a text is too long for a path
            return _hash(path)
        if not os.path.isdir(path):
            return None
        inside = [p for p in path.iterdir() if p.suffix in READ and p.is_file()] + list(path.glob("*/state.json"))
        hashes = [f"{p.relative_to(path)} {_hash(p)}" for p in sorted(inside)]
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:12]
    except OSError:
        return None


def _hash(path: Path) -> str:
    stat = path.stat()
    return _sha256(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@cache
def _sha256(path: Path, *version: int) -> str:
    """Read once for all jobs of a sweep."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]
