"""One file -> records with their line or row numbers. Its ending names the format, and a second one the compression."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from lightning_dpo.data.lines import json_records, line_records, table_records
from lightning_dpo.data.locations import local, protocol, remote, shown, unreached
from lightning_dpo.data.tables import ARROW_FILE, arrow_records, parquet_records
from lightning_dpo.errors import DataError

UTF16 = (b"\xff\xfe", b"\xfe\xff")
TEXTS: dict[str, Callable[[Any, str], Iterator[tuple[int, Any]]]] = {
    ".jsonl": line_records,
    ".ndjson": line_records,
    ".json": json_records,
    ".csv": partial(table_records, delimiter=","),
    ".tsv": partial(table_records, delimiter="\t"),
}
"""Formats whose rows have line numbers, and which may be compressed."""
TABLES = {".parquet": parquet_records, ".arrow": arrow_records}
BEGINNINGS = {
    ".parquet": ((b"PAR1",), "a Parquet file (it does not begin with PAR1)"),
    ".arrow": ((ARROW_FILE, b"\xff\xff\xff\xff"), "an Arrow file"),
}
"""First bytes of a table, and what it is not without them."""


class Compression(NamedTuple):
    """Name, first bytes, and the function that decompresses a file."""

    name: str
    magic: bytes
    open: Callable[[Any], Any]


def _zstandard(file: Any) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(file, "zstd")  # Python itself has no zstandard before 3.14


COMPRESSIONS = {
    ".gz": Compression("gzip", b"\x1f\x8b", gzip.open),
    ".bz2": Compression("bzip2", b"BZh", bz2.open),
    ".xz": Compression("xz", b"\xfd7zXZ\0", lzma.open),
    ".zst": Compression("zstandard", b"\x28\xb5\x2f\xfd", _zstandard),
}
ALLOWED = f"{', '.join(TEXTS)}, also with {', '.join(COMPRESSIONS)}; {', '.join(TABLES)}"
DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError)


def endings(path: str) -> tuple[str, str]:
    """The endings of format and compression, in lower case.

    >>> endings("Pairs.JSONL.GZ"), endings("pairs.parquet")
    (('.jsonl', '.gz'), ('.parquet', ''))
    """
    name = PurePosixPath(shown(path).lower())
    packed = name.suffix if name.suffix in COMPRESSIONS else ""
    return PurePosixPath(name.stem if packed else name).suffix, packed


def is_readable(path: str) -> bool:
    """Whether the endings name a format."""
    ending, packed = endings(path)
    return ending in TEXTS or (ending in TABLES and not packed)


def is_lines(path: str) -> bool:
    """Whether the rows of the file have line numbers."""
    return endings(path)[0] in TEXTS


def opened(path: str, where: str, streaming: bool = False) -> Any:
    """The bytes of a file, which begins as its ending says. A stream of a URL is read in place and not downloaded.

    Args:
        where: the file, for messages.

    Errors: DataError.
    """
    file = (remote(path) if streaming else None) or open(local(path), "rb")
    if wrong := _wrong_start(file.peek(8)[:8], path):
        file.close()
        raise DataError(f"{where}: {wrong}")
    return file


def records(path: str, streaming: bool = False) -> Iterator[tuple[int, Any]]:
    """Line or row number and record. Errors: DataError for a file that is damaged or cannot be read."""
    ending, packed = endings(path)
    where, format = shown(path), TEXTS.get(ending) or TABLES[ending]
    try:
        with opened(path, where, streaming) as file:
            plain = io.BufferedReader(COMPRESSIONS[packed].open(file), 1 << 16) if packed else file
            yield from format(plain, where)
    except DAMAGE as error:
        damaged = packed and getattr(error, "errno", None) is None
        what = f"damaged {COMPRESSIONS[packed].name}" if damaged else "cannot be read"
        raise DataError(f"{where}: {what}: {error}") from None
    except Exception as error:
        if isinstance(error, DataError) or not protocol(path):
            raise
        raise unreached(path, error) from None  # the libraries below fsspec raise many types


def _wrong_start(start: bytes, path: str) -> str | None:
    ending, packed = endings(path)
    name = PurePosixPath(shown(path))
    if not start:
        return "the file is empty"
    if ending in TABLES:
        allowed, kind = BEGINNINGS[ending]
        return None if start.startswith(allowed) else f"not {kind}"
    found = next((key for key, known in COMPRESSIONS.items() if start.startswith(known.magic)), "")
    if found != packed:
        plain, verb = (name.stem if packed else name.name), "is" if found else "is not"
        return f"the file {verb} compressed by {COMPRESSIONS[found or packed].name}; rename it to {plain}{found}"
    if not packed and (start[:2] in UTF16 or b"\0" in start[:4]):
        return "the file is UTF-16; save it as UTF-8"
    return None
