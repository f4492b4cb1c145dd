"""Text files, which are JSON by line, one JSON list, or CSV -> records with their line numbers."""

import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from lightning_dpo.data.rows import BadRow, kind_of, printable
from lightning_dpo.errors import DataError

SPACE, COMMA, LIST_END = re.compile(r"\s*"), re.compile(r"\s*,\s*"), re.compile(r"\s*\]\s*\Z")
BOM = b"\xef\xbb\xbf"
NOT_UTF8 = re.compile("[\udc80-\udcff]")


def line_records(file: Any, path: str) -> Iterator[tuple[int, bytes]]:
    """Line number and bytes of each line that is not blank. A malformed one raises later, in parse_line()."""
    for number, line in enumerate(file, start=1):
        line = (line.removeprefix(BOM) if number == 1 else line).rstrip(b"\r\n")
        if line.strip():
            yield number, line


def json_records(file: Any, path: str) -> Iterator[tuple[int, Any]]:
    """The lines of a .json file that holds one object per line, or the elements of the list that it holds.

    Errors: DataError for a damaged list.
    """
    is_list = file.peek(4096).removeprefix(BOM).lstrip()[:1] == b"["
    return _json_list(file.read(), path) if is_list else line_records(file, path)


def table_records(file: Any, path: str, delimiter: str) -> Iterator[tuple[int, Any]]:
    """The line on which each row of a CSV or TSV file begins, and its cells by the names in the first row.

    Every cell is a text. An empty one is an empty text, since CSV cannot tell it from an absent one. So a pair with an
    empty response is dropped and counted.

    Errors: DataError for two columns of one name, and for wrong quotes, which hide where rows begin.
    """
    rows = _table_rows(file, path, delimiter)
    line, header = next(rows, (1, []))
    if twice := [name for name, n in Counter(header).items() if name and n > 1]:
        raise DataError(f"{path}:{line}: two columns are named {printable(twice[0])}; rename one")
    for line, cells in rows:
        yield line, _table_record(header, cells)


def _table_rows(file: Any, path: str, delimiter: str) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(sys.maxsize)  # the default refuses texts of more than 131072 characters
    reader = csv.reader(_texts(file), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            what = "a quote is not closed" if "end of data" in str(error) else str(error)
            # Where the next row begins is not known, so no row after this one can be trusted.
            raise DataError(f"{path}:{line}: not CSV: {what}") from None
        if cells:
            yield line, cells


def _texts(file: Any) -> Iterator[str]:
    """Lines as text, in which bytes that are not UTF-8 are lone surrogates."""
    for number, line in enumerate(file):
        yield (line if number else line.removeprefix(BOM)).decode("utf-8", "surrogateescape")


def _table_record(header: list[str], cells: list[str]) -> "TextRecord | BadRow":
    if len(cells) != len(header):
        return BadRow("cells", f"the row has {len(cells)} cells, and the first row {len(header)}")
    if wrong := [name for name, cell in zip(header, cells, strict=True) if NOT_UTF8.search(cell)]:
        return BadRow("encoding", "a byte is not UTF-8", wrong[0])
    return TextRecord(zip(header, cells, strict=True))


class TextRecord(dict[str, str]):
    """A record of a file that holds texts only, so that its numbers are texts too."""


def _json_list(data: bytes, path: str) -> Iterator[tuple[int, Any]]:
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
