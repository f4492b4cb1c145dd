"""JSON files, by line or as one list -> records with their line numbers."""

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_dpo.data.rows import BadRow, kind_of, printable
from lightning_dpo.errors import DataError

SPACE, COMMA, LIST_END = re.compile(r"\s*"), re.compile(r"\s*,\s*"), re.compile(r"\s*\]\s*\Z")
BOM = b"\xef\xbb\xbf"


def json_records(path: Path) -> Iterator[tuple[int, Any]]:
    """Line number and record: the bytes of a JSONL line, or an element of the list that a .json file may hold.

    Errors: DataError for a damaged list or gzip file. A malformed JSONL line raises later, in parse_line().
    """
    opened: Any = gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")
    with opened as file:
        try:
            start = file.read(4096).removeprefix(BOM).lstrip()
            file.seek(0)
            is_list = path.name.removesuffix(".gz").endswith(".json") and start[:1] == b"["
            yield from _json_list(file.read(), path) if is_list else _lines(file)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path}: damaged gzip: {error}") from None


def _lines(file: Any) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(file, start=1):
        line = (line.removeprefix(BOM) if number == 1 else line).rstrip(b"\r\n")
        if line.strip():
            yield number, line


def _json_list(data: bytes, path: Path) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON list, each with the line on which it begins."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start + 1} is not UTF-8") from None
    strict, plain = json.JSONDecoder(object_pairs_hook=_unique), json.JSONDecoder()
    at = text.index("[") + 1
    line, gap = 1 + text.count("\n", 0, at), SPACE.match(text, at)
    while not LIST_END.match(text, at):
        if gap is None:
            raise DataError(f"{path}:{line}: not JSON: expected a comma and another row, or ] and nothing after it")
        line, at = line + text.count("\n", at, gap.end()), gap.end()
        try:
            element, end = plain.raw_decode(text, at)  # a duplicate key is a bad row, whose end must be known
            element = strict.raw_decode(text, at)[0]
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg} at column {error.colno}") from None
        except BadRow as error:
            element = error
        except (RecursionError, ValueError) as error:
            raise DataError(f"{path}:{line}: {_unreadable(error)}") from None
        yield line, element
        line, at = line + text.count("\n", at, end), end
        gap = COMMA.match(text, at)


def parse_line(line: bytes) -> dict[str, Any]:
    r"""The object on one line of a JSONL file.

    Errors: BadRow.

    >>> parse_line(b'{"prompt": "2 + 2 ="}')
    {'prompt': '2 + 2 ='}
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow("encoding", f"byte {error.start + 1} of the line is not UTF-8") from None
    try:
        return as_object(json.loads(text, object_pairs_hook=_unique))
    except json.JSONDecodeError as error:
        raise BadRow("json", f"not JSON: {error.msg} at column {error.colno}{_json_hint(text, error)}") from None
    except BadRow:
        raise
    except (RecursionError, ValueError) as error:
        raise BadRow("json", _unreadable(error)) from None


def as_object(record: Any) -> dict[str, Any]:
    """The record if it is an object. Errors: BadRow, which may have been raised when the record was read."""
    if isinstance(record, BadRow):
        raise record
    if not isinstance(record, dict):
        hint = " (name a file that holds one list .json)" if isinstance(record, list) else ""
        raise BadRow("json", f"found {kind_of(record)}, expected an object with prompt, chosen, rejected{hint}")
    return record


def _unreadable(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"


def _json_hint(text: str, error: json.JSONDecodeError) -> str:
    if error.msg == "Extra data" and text[error.pos : error.pos + 1] == "{":
        return ": two objects on one line"
    if "'" in text[error.pos : error.pos + 1]:
        return ": JSON takes double quotes"
    if text.strip() == "{":
        return ": an object spans several lines; write one object per line, or a list in a .json file"
    return ": the line is cut off" if error.pos >= len(text.rstrip()) or "Unterminated" in error.msg else ""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise BadRow("duplicate_key", "the key appears twice", printable(key)[1:-1])
    return record
