"""JSON files: lines or one list -> records with the physical line on which each stands."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_dpo.data.rows import BadRow, kind_of, printable
from lightning_dpo.errors import DataError

SPACE, COMMA, LIST_END = re.compile(r"\s*"), re.compile(r"\s*,\s*"), re.compile(r"\s*\]\s*\Z")


def json_records(path: Path) -> Iterator[tuple[int, Any]]:
    """Line number and record: the bytes of a line of JSONL, or an element of the one list that a .json file may hold.

    Errors: DataError for a list that is broken; a broken line shows in parse_line().
    """
    opened: Any = gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")
    with opened as file:
        try:
            start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
            file.seek(0)
            whole = path.name.removesuffix(".gz").endswith(".json") and start[:1] == b"["
            yield from _json_list(file.read(), path) if whole else _lines(file)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path}: damaged gzip: {error}") from None


def _lines(file: Any) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(file, start=1):
        line = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).rstrip(b"\r\n")
        if line.strip():
            yield number, line


def _json_list(data: bytes, path: Path) -> Iterator[tuple[int, Any]]:
    """The elements of one JSON list, with the line on which each begins."""
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
            element, end = plain.raw_decode(text, at)
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
    r"""One line of a JSONL file -> its object.

    Errors: BadRow.

    >>> parse_line(b'{"prompt": "2 + 2 ="}')
    {'prompt': '2 + 2 ='}
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow("encoding", f"byte {error.start + 1} of the line is not UTF-8") from None
    try:
        record = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise BadRow("json", f"not JSON: {error.msg} at column {error.colno}{_json_hint(text, error)}") from None
    except BadRow:
        raise
    except (RecursionError, ValueError) as error:
        raise BadRow("json", _unreadable(error)) from None
    return as_object(record)


def as_object(record: Any) -> dict[str, Any]:
    """The record, unless it is none, or was found to be bad where it was read.

    Errors: BadRow.
    """
    if isinstance(record, BadRow):
        raise record
    if not isinstance(record, dict):
        hint = " (a file that is one list is named .json)" if isinstance(record, list) else ""
        raise BadRow("json", f"found {kind_of(record)}, expected an object with prompt, chosen, rejected{hint}")
    return record


def _unreadable(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"


def _json_hint(text: str, error: json.JSONDecodeError) -> str:
    if error.msg == "Extra data" and text[error.pos : error.pos + 1] == "{":
        return ": two objects in one line"
    if "'" in text[error.pos : error.pos + 1]:
        return ": JSON takes double quotes"
    if text.strip() == "{":
        return ": an object over several lines; write one object a line, or a list in a .json file"
    return ": the line is cut off" if error.pos >= len(text.rstrip()) or "Unterminated" in error.msg else ""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))
        raise BadRow("duplicate_key", "the key stands twice", printable(twice)[1:-1])
    return record
