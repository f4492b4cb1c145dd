"""JSON lines -> rows {prompt, chosen, rejected}, or an error that names file, line and field."""

import hashlib
import json
import math
from pathlib import Path
from typing import NamedTuple

from lightning_dpo.errors import DataError

FIELDS = ("prompt", "chosen", "rejected")
ROLES = ("system", "user", "assistant", "tool")
Messages = list[dict[str, str]]


class Row(NamedTuple):
    """One preference pair as text.

    prompt: plain text, or chat messages `{"role", "content"}`; the responses are texts either way.
    where: file and line, for messages.
    """

    prompt: str | Messages
    chosen: str
    rejected: str
    where: str


def read_rows(path: str | Path) -> list[Row]:
    """Every row of a JSONL file; blank lines are skipped, other fields than the three are ignored.

    Errors: DataError for a file that is missing or empty, and for the first row that is not a preference pair.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"{path}: no such file; data.train and data.val take the path of a JSONL file")
    rows = []
    with open(path, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                rows.append(parse_row(line, f"{path}:{number}"))
    if not rows:
        raise DataError(f"{path}: the file holds no rows")
    return rows


def parse_row(line: str, where: str) -> Row:
    """One line of JSON -> Row.

    >>> parse_row('{"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}', "a.jsonl:1").chosen
    ' 4'
    """
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: found a JSON {_kind(record)}, expected an object with {', '.join(FIELDS)}")
    for field in FIELDS:
        if field not in record:
            raise DataError(f"{where}: field {field!r} is missing; found {', '.join(map(repr, record)) or 'no fields'}")
    prompt = record["prompt"]
    if isinstance(prompt, list):
        _check_messages(prompt, f"{where}: field 'prompt'")
        if prompt[-1]["role"] == "assistant":
            raise DataError(f"{where}: field 'prompt': the last message is the assistant's, so nothing is asked")
    elif not isinstance(prompt, str):
        raise DataError(f"{where}: field 'prompt': found {_kind(prompt)}, expected a text or a list of messages")
    chat = isinstance(prompt, list)
    chosen, rejected = (_response(record[f], chat, f"{where}: field {f!r}") for f in FIELDS[1:])
    if chat:
        prompt = [{"role": m["role"], "content": m["content"]} for m in prompt]
    return Row(prompt, chosen, rejected, where)


def _response(value: object, chat: bool, where: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise DataError(f"{where}: found {_kind(value)}, expected a text or one assistant message")
    _check_messages(value, where)
    if not chat:
        raise DataError(f"{where}: found messages beside a prompt that is text; make both text or both messages")
    if len(value) != 1 or value[0]["role"] != "assistant":
        roles = ", ".join(m["role"] for m in value)
        raise DataError(f"{where}: found messages of {roles}; expected exactly one, the assistant's")
    return value[0]["content"]


def _check_messages(messages: list, where: str) -> None:
    if not messages:
        raise DataError(f"{where}: the list of messages is empty")
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise DataError(f"{where}[{i}]: found {_kind(message)}, expected a message with role and content")
        if message.get("role") not in ROLES:
            raise DataError(f"{where}[{i}]: role {message.get('role')!r}; allowed: {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str):
            raise DataError(f"{where}[{i}]: content is {_kind(message.get('content'))}, expected a text")


def _kind(value: object) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "true/false", int: "number", float: "number"}
    return "null" if value is None else names[type(value)]


def split_by_prompt(rows: list[Row], fraction: float) -> tuple[list[Row], list[Row]]:
    """Training rows and validation rows, no prompt on both sides; `fraction` is a share of the distinct prompts.

    The prompts with the smallest hashes go to validation: the split depends on the prompts alone, not on a seed or on
    the order of the rows, so that runs compare and cached references are found again.

    Errors: DataError if either side would be empty.
    """
    digests = [hashlib.sha256(json.dumps(row.prompt).encode()).hexdigest() for row in rows]
    distinct = sorted(set(digests))
    held_out = set(distinct[: math.ceil(fraction * len(distinct))])
    train = [row for row, digest in zip(rows, digests, strict=True) if digest not in held_out]
    val = [row for row, digest in zip(rows, digests, strict=True) if digest in held_out]
    if not train or not val:
        raise DataError(
            f"data.val={fraction}: {len(distinct)} distinct prompts cannot be split into training and validation; "
            "give validation its own file, or data.val=null for none"
        )
    return train, val
