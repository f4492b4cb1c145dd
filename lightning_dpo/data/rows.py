"""Preference pairs as text, and the exceptions for rows that give no pair."""

from typing import Any, NamedTuple

Message = dict[str, str]
Messages = list[Message]
Response = str | Messages
"""A single turn as text, or several turns as messages, of which only the assistant's can be trained."""

UNSUPPORTED = ("tool_calls", "function_call", "reasoning_content", "thinking")
"""Fields of a message that templates may print. A row with one is refused, because only the content is read."""

ROLES = ("system", "user", "assistant", "tool")


class Row(NamedTuple):
    """One preference pair as text.

    prompt: plain text, or chat messages `{"role", "content"}`; responses continue a final assistant message.
    chosen, rejected: the responses. If the prompt is plain text, the contents of several turns include the text
        between the turns.
    weight: factor of the pair's loss. margin: gap that the pair asks for; None without a margin column.
    """

    prompt: str | Messages
    chosen: Response
    rejected: Response
    weight: float = 1.0
    margin: float | None = None

    @property
    def runs_together(self) -> bool:
        """Whether the last word of a plain text prompt runs into the response."""
        first = self.chosen if isinstance(self.chosen, str) else self.chosen[0]["content"]
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
    """A valid pair that a loss cannot learn from. The message is the reason that is counted."""


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


def checked(value: Any, field: str) -> str | Messages:
    """A text, or a list of messages reduced to role and content.

    Errors: BadRow.
    """
    if isinstance(value, str):
        return encodable(value, field)
    if not isinstance(value, list):
        raise BadRow("type", f"found {kind_of(value)}, expected a text or a list of messages", field)
    if not value:
        raise BadRow("empty_messages", "the list of messages is empty", field)
    return [_message(message, f"{field}[{i}]") for i, message in enumerate(value)]


def _message(message: Any, field: str) -> Message:
    if not isinstance(message, dict):
        raise BadRow("type", f"found {kind_of(message)}, expected a message with role and content", field)
    if unsupported := [name for name in UNSUPPORTED if message.get(name)]:
        raise BadRow("type", f"{unsupported[0]} is not supported; only role and content are read", field)
    if message.get("role") not in ROLES:
        hint = "; rename from/value to role/content" if {"from", "value"} <= set(message) else ""
        raise BadRow("role", f"role {printable(message.get('role'))}; allowed: {', '.join(ROLES)}{hint}", field)
    if not isinstance(message.get("content"), str):
        raise BadRow("type", f"content is {kind_of(message.get('content'))}, expected a text", field)
    return {"role": message["role"], "content": encodable(message["content"], field)}


def encodable(text: str, field: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow("surrogate", f"unpaired surrogate {ascii(text[error.start])}, not a character", field) from None
    return text
