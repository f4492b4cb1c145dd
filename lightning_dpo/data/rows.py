"""Preference pairs as text, and the exceptions for rows that give no pair."""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

Message = dict[str, Any]
"""`role` and `content`, and those of KEYS that are not empty. The content is None only beside tool calls."""
Messages = list[Message]
Response = str | Messages
"""A single turn as text; or messages, of which only the assistant's can be trained."""
Note = tuple[str, str]
"""Something that the data page counts by rows: its kind (see data/report/notes.py) and what it is about."""

SYSTEM = ("system", "developer")
ROLES = (*SYSTEM, "user", "assistant", "tool")
KEYS = ("name", "tool_calls", "tool_call_id", "reasoning", "reasoning_content", "thinking")
"""Keys of a message that reach the chat template beside role and content. All others are ignored and counted."""
PYTHON = re.compile(r"\[?\s*+\{'(role|from|content|value)'\s*+:")
"""How messages begin that str() made a text of."""


class Row(NamedTuple):
    """One preference pair as text.

    prompt: plain text, or chat messages `{"role", "content"}`; responses continue a final assistant message.
    chosen, rejected: the responses. If the prompt is plain text, the contents of several turns include the text
        between the turns.
    weight: factor of the pair's loss. margin: gap that the pair asks for; None without a margin column.
    options: what the chat template gets beside the messages: `tools`, and the row's own chat_template_kwargs.
    notes: what the data page counts, such as the columns that were ignored.
    """

    prompt: str | Messages
    chosen: Response
    rejected: Response
    weight: float = 1.0
    margin: float | None = None
    options: Mapping[str, Any] = {}
    notes: tuple[Note, ...] = ()

    @property
    def runs_together(self) -> bool:
        """Whether the last word of a plain text prompt runs into the response."""
        first = self.chosen if isinstance(self.chosen, str) else text_of(self.chosen[0])
        return isinstance(self.prompt, str) and self.prompt[-1:].isalnum() and first[:1].isalnum()

    @property
    def repeats_prompt(self) -> bool:
        """Whether both responses begin with the whole prompt, as if they were full texts."""
        prompt, sides = self.prompt, (self.chosen, self.rejected)
        if not isinstance(prompt, str) or not prompt:
            return False
        return all(isinstance(side, str) and side.startswith(prompt) for side in sides)


class BadRow(ValueError):
    """A row that is not a preference pair.

    kind: groups similar mistakes when they are counted. field: location within the row; "" for the whole row.
    """

    def __init__(self, kind: str, message: str, field: str = ""):
        super().__init__(message)
        self.kind = kind
        self.field = field

    def __reduce__(self):
        return BadRow, (self.kind, str(self), self.field)


class Dropped(ValueError):
    """A valid pair that a loss cannot learn from. The message is the reason that is counted.

    notes: as those of a Row.
    """

    notes: tuple[Note, ...] = ()


def printable(value: object, limit: int = 60) -> str:
    r"""A short quotation with control characters escaped, so that a row cannot control the terminal.

    >>> printable("a\x1b[31mb")
    "'a\\x1b[31mb'"
    """
    text = repr(value)
    text = text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def located(where: str, field: str, message: str) -> str:
    """A message about a bad row, with its file, line and field."""
    return f"{where}: field {field!r}: {message}" if field else f"{where}: {message}"


def kind_of(value: Any) -> str:
    """The JSON name of a value's type."""
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "a text", bool: "true/false", int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)


def text_of(message: Message) -> str:
    """The content of a message; "" if it is None."""
    return message["content"] or ""


def checked(value: Any, field: str, ignored: set[str]) -> str | Messages:
    """A text, or a list of checked messages; a single message counts as a list of one.

    Args:
        ignored: receives the keys of messages that are not read.

    Errors: BadRow.
    """
    if isinstance(value, str):
        if value.lstrip()[:1] in ("[", "{") and _holds_messages(value.strip()):
            remedy = "store the list itself, in a format that has lists (JSONL, Parquet)"
            raise BadRow("json_text", f"found the text of messages in JSON or Python; {remedy}", field)
        return encodable(value, field)
    if isinstance(value, dict) and "role" in value:
        return [_message(value, field, ignored)]
    if not isinstance(value, list):
        raise BadRow("type", f"found {kind_of(value)}, expected a text or a list of messages", field)
    if not value:
        raise BadRow("empty_messages", "the list of messages is empty", field)
    return [_message(message, f"{field}[{i}]", ignored) for i, message in enumerate(value)]


def _holds_messages(text: str) -> bool:
    """Whether a text is a message, or a list of them, in the spelling of JSON or Python."""
    if PYTHON.match(text):
        return True
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        return False
    first = read[0] if isinstance(read, list) and read else read
    return isinstance(first, dict) and any(keys <= set(first) for keys in ({"role", "content"}, {"from", "value"}))


def _message(message: Any, field: str, ignored: set[str]) -> Message:
    if not isinstance(message, dict):
        raise BadRow("type", f"found {kind_of(message)}, expected a message with role and content", field)
    if message.get("function_call"):
        raise BadRow("type", "function_call is not supported; write it as tool_calls", field)
    role = message.get("role")
    if role not in ROLES:
        hint = "; rename from/value to role/content" if {"from", "value"} <= set(message) else ""
        raise BadRow("role", f"role {printable(role)}; allowed: {', '.join(ROLES)}{hint}", field)
    read = {"role": role, "content": _content(message, field)}
    for key, value in message.items():
        if key == "tool_calls" and isinstance(value, list) and value:
            read[key] = [_call(call, f"{field}.{key}[{i}]") for i, call in enumerate(value)]
        elif key in KEYS and not is_empty(value):
            read[key] = as_json(value, f"{field}.{key}")
        elif key not in ("role", "content") and not is_empty(value):
            ignored.add(key)
    return read


def _content(message: Message, field: str) -> str | None:
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return None
    if isinstance(content, list) and content:
        content = "".join(_part(part, f"{field}.content[{i}]") for i, part in enumerate(content))
    if not isinstance(content, str):
        raise BadRow("type", f"content is {kind_of(content)}, expected a text", field)
    return encodable(content, field)


def _part(part: Any, field: str) -> str:
    """The text of a part of a content, {"type": "text", "text": ...}."""
    text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else None
    if not isinstance(text, str):
        raise BadRow("type", f"found {printable(part)}, expected a part of type text", field)
    return text


def _call(call: Any, field: str) -> Any:
    """A tool call. Arguments that are the JSON text of an object, as OpenAI has them, become the object."""
    function = call.get("function", call) if isinstance(call, dict) else {}
    text = function.get("arguments") if isinstance(function, dict) else None
    if isinstance(text, str):
        try:
            read = json.loads(text)
        except (ValueError, RecursionError):
            read = None
        if isinstance(read, dict):
            function = {**function, "arguments": read}
            call = {**call, "function": function} if "function" in call else function
    return as_json(call, field)


def is_empty(value: Any) -> bool:
    """Whether a value holds nothing, so that ignoring it loses nothing: a table has every field in every row."""
    return value is None or (isinstance(value, str | list | dict) and not value)


def as_json(value: Any, field: str) -> Any:
    """A value for the chat template, if all of its text can be encoded."""
    try:
        encodable(json.dumps(value, ensure_ascii=False), field)
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, BadRow):
            raise
        raise BadRow("type", f"found a value that JSON cannot hold: {error}", field) from None
    return value


def encodable(text: str, field: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow("surrogate", f"unpaired surrogate {ascii(text[error.start])}, not a character", field) from None
    return text
