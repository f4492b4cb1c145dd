"""What a preference pair is, before it becomes tokens, and what a bad row says about itself."""

from typing import Any, NamedTuple

Message = dict[str, str]
Messages = list[Message]
Response = str | Messages
"""One turn as text; several turns as messages, of which only the assistant's may be trained."""

LOST = ("tool_calls", "function_call", "reasoning_content", "thinking")
"""Parts of a message that templates may print, and that are not read here."""

ROLES = ("system", "user", "assistant", "tool")


class Row(NamedTuple):
    """One preference pair as text.

    prompt: plain text, or chat messages `{"role", "content"}`; a last message of the assistant is continued.
    chosen, rejected: what follows. In several turns the contents of plain text carry their own marks between turns.
    weight: factor of the pair's loss. margin: the gap that the data ask for, None without a margin column.
    """

    prompt: str | Messages
    chosen: Response
    rejected: Response
    weight: float = 1.0
    margin: float | None = None

    @property
    def runs_together(self) -> bool:
        """Whether a word of a prompt of plain text runs into the response."""
        first = self.chosen if isinstance(self.chosen, str) else self.chosen[0]["content"]
        return isinstance(self.prompt, str) and self.prompt[-1:].isalnum() and first[:1].isalnum()

    @property
    def repeats_prompt(self) -> bool:
        """Whether both responses begin with the whole prompt, as if they were the whole text."""
        prompt, sides = self.prompt, (self.chosen, self.rejected)
        if not isinstance(prompt, str) or not prompt:
            return False
        return all(isinstance(side, str) and side.startswith(prompt) for side in sides)


class BadRow(ValueError):
    """A row that is no preference pair: `kind` groups like cases, `field` is where in the row, "" for all of it."""

    def __init__(self, kind: str, message: str, field: str = ""):
        super().__init__(message)
        self.kind = kind
        self.field = field

    def __reduce__(self):
        return BadRow, (self.kind, str(self), self.field)


class Dropped(ValueError):
    """A pair that says nothing a loss could learn from; the reason is counted."""


def printable(value: object, limit: int = 60) -> str:
    r"""A short quotation, control characters escaped, so that a row cannot write to the terminal.

    >>> printable("a\x1b[31mb")
    "'a\\x1b[31mb'"
    """
    text = repr(value)
    text = text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def kind_of(value: Any) -> str:
    """The JSON name of a value's type."""
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "a text", bool: "true/false", int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)


def checked(value: Any, field: str) -> str | Messages:
    """The text, or the messages with role and content alone.

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
    if lost := [name for name in LOST if message.get(name)]:
        raise BadRow("type", f"{lost[0]}: not supported, it would be lost", field)
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
        raise BadRow("surrogate", f"half a surrogate pair, {ascii(text[error.start])}: no character", field) from None
    return text
