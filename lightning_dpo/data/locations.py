"""Where files are: on this machine, at a URL, behind a glob, or in a folder as it is downloaded from the hub."""

import io
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from lightning_dpo.data.rows import printable
from lightning_dpo.data.tables import loaded
from lightning_dpo.errors import DataError
from lightning_dpo.files import matching

PROTOCOLS = ("hf", "https", "http", "s3", "gs", "gcs", "az", "abfs", "memory", "file")
"""Others of fsspec may be wrapped around each other, or run what a file says."""
WEB = ("https", "http")
URL = re.compile(r"([\w+.-]+)://")
QUERY = re.compile(r"(?<=://)([^\s?'\"]+)\?[^\s'\")]+")

T = TypeVar("T")


def protocol(path: str) -> str | None:
    """The protocol of a URL; None for a path on this machine."""
    found = URL.match(path)
    return found and found[1].lower()


def shown(path: str) -> str:
    """The path for messages and names: a URL without its query, which may hold a secret.

    >>> shown("https://example.org/pairs.jsonl?signature=abc")
    'https://example.org/pairs.jsonl'
    """
    return path.partition("?")[0] if protocol(path) else path


def check_url(url: str, setting: str) -> None:
    """Errors: DataError for a protocol that is not read."""
    if protocol(url) not in PROTOCOLS or "::" in url:
        raise DataError(f"{setting}: allowed: a URL of {', '.join(f'{name}://' for name in PROTOCOLS)}")


def unreached(url: str, error: Exception) -> DataError:
    """One line for any error of fsspec and the libraries below it."""
    cause = error.__cause__ or error  # fsspec calls any failure of the web a missing file
    first = QUERY.sub(r"\1", str(cause).splitlines()[0]) if str(cause) else ""
    reason = "no such file" if isinstance(cause, FileNotFoundError) else f"{type(cause).__name__}: {first}"
    return DataError(f"{shown(url)}: cannot be read from there: {reason}")


def _reached(url: str, act: Callable[[], T]) -> T:
    try:
        return act()
    except Exception as error:
        raise unreached(url, error) from None


def remote(path: str) -> Any:
    """The opened file at a URL; None for a path on this machine. Errors: DataError."""
    import fsspec

    if not protocol(path):
        return None
    found: Any = fsspec.open(path, "rb")
    return _reached(path, lambda: io.BufferedReader(found.open()))


def local(path: str) -> Path:
    """The file on this machine. One at a URL is downloaded to the cache of `datasets`, once in a process."""
    return _downloaded(path) if protocol(path) else Path(path).expanduser()


@cache
def _downloaded(url: str) -> Path:
    import datasets
    from fsspec.core import url_to_fs

    def download() -> Any:
        fs, inner = url_to_fs(url)
        # The cache knows a file by its ETag or its commit. Without them, it would not see a change.
        known = protocol(url) == "hf" or any(name.lower() == "etag" for name in fs.info(inner))
        options = datasets.DownloadConfig(force_download=not known)
        return datasets.DownloadManager(download_config=options).download(url)

    return Path(_reached(url, download))


def files(path: str) -> list[str]:
    """The files that a path or a glob stands for, sorted. A URL of the web is one file."""
    if protocol(path) in WEB or not re.search(r"[*?[]", path):
        return [path]
    if not protocol(path):
        return [path] if Path(path).expanduser().exists() else matching(path)

    def glob() -> list[str]:
        from fsspec.core import url_to_fs

        fs, inner = url_to_fs(path)
        return sorted(fs.unstrip_protocol(found) for found in fs.glob(inner))

    return _reached(path, glob)


def folder_files(path: str, subset: str | None, setting: str) -> dict[str, list[str]]:
    """The files of each split of a folder as it is downloaded from the hub, by the rules of `datasets`: a list in the
    folder's README.md, or the splits in the names of files and folders. A file of any format counts here.

    Errors: DataError for a folder without data files, and for a subset that it does not name.
    """
    from datasets.data_files import DataFilesDict, get_data_patterns, sanitize_patterns
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import metadata_load

    top = Path(path).expanduser().resolve()

    def find() -> dict[str, list[str]]:
        card: Any = (metadata_load(top / "README.md") if (top / "README.md").is_file() else None) or {}
        subsets = MetadataConfigs.from_dataset_card_data(card)
        name = subset or subsets.get_default_config_name() or ""
        if name not in subsets and (subset or subsets):
            allowed = f"allowed: {', '.join(subsets)}; type data.subset=..." if subsets else "the folder names none"
            raise DataError(f"{setting}: subset={subset}; {allowed}")
        options = subsets[name] if name in subsets else {}
        base = str(top / options.get("data_dir", ""))
        named = options.get("data_files")
        patterns = get_data_patterns(base) if named is None else sanitize_patterns(named)
        found = DataFilesDict.from_local_or_remote(patterns, base)
        return {str(split): sorted(set(map(os.path.normpath, listed))) for split, listed in found.items()}

    splits = loaded(setting, find)
    if outside := [f for found in splits.values() for f in found if not Path(f).is_relative_to(top)]:
        raise DataError(
            f"{setting}: its README.md names {printable(os.path.relpath(outside[0], top))}, which is outside the folder"
        )
    return {split: [str(Path(path) / Path(f).relative_to(top)) for f in found] for split, found in splits.items()}
