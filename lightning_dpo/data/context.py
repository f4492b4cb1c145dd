"""What a record holds around its prompt: a system message, earlier turns, an input, tools and template options."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from lightning_dpo.data.chat import RESERVED
from lightning_dpo.data.rows import SYSTEM, BadRow, Messages, Row, as_json, checked, encodable, kind_of, printable

FIELDS = ("system", "history", "tools", "chat_template_kwargs")
"""Fields that only a chat can hold."""


class Context(NamedTuple):
    """The context of a record, checked. `field` is the first that it has, for error messages."""

    field: str
    system: str
    history: Messages
    options: Mapping[str, Any]

    def around(self, row: Row) -> Row:
        """The row with its context. Errors: BadRow for a text prompt, or for another system message in the prompt."""
        if isinstance(row.prompt, str):
            remedy = f"type data.wrap=chat to make messages of the texts, or {_ignore(self.field)}"
            raise BadRow("mixture", f"the prompt is a text, which has no place for it; {remedy}", self.field)
        count = next((i for i, message in enumerate(row.prompt) if message["role"] not in SYSTEM), len(row.prompt))
        first, turns = row.prompt[:count], row.prompt[count:]
        if self.system and not first:
            first = [{"role": "system", "content": self.system}]
        elif self.system and all(message["content"] != self.system for message in first):
            found = f"the prompt's own system message is {printable(first[0]['content'], 30)}"
            raise BadRow("mixture", f"{found}; remove one of the two, or {_ignore('system')}", "system")
        return row._replace(prompt=[*first, *self.history, *turns], options=self.options)


def context(found: Mapping[str, Any], ignored: set[str]) -> Context | None:
    """The context of a record; None if it has none.

    Args:
        ignored: receives the keys of messages that are not read.

    Errors: BadRow.
    """
    if not any(field in found for field in FIELDS):
        return None
    system, history = found.get("system", ""), _history(found.get("history"), ignored)
    if not isinstance(system, str):
        raise BadRow("type", f"found {kind_of(system)}, expected a text; or {_ignore('system')}", "system")
    tools, options = _parsed(found, "tools", list), _parsed(found, "chat_template_kwargs", dict)
    if taken := sorted(RESERVED & options.keys()):
        raise BadRow("type", f"{taken[0]} is not an option that a row may set; remove it", "chat_template_kwargs")
    options = {name: value for name, value in options.items() if value is not None}  # null, as a table has for absent
    held = (field for field, value in zip(FIELDS, (system, history, tools, options), strict=True) if value)
    options = {"tools": tools, **options} if tools else options
    first = next(held, None)
    return None if first is None else Context(first, encodable(system, "system"), history, options)


def with_input(prompt: object, value: object) -> str:
    """The prompt and below it the `input`, as in rows of Alpaca. Errors: BadRow."""
    if not isinstance(prompt, str) or not isinstance(value, str):
        found = f"{kind_of(value)} beside a prompt that is {kind_of(prompt)}"
        raise BadRow("mixture", f"found {found}, expected two texts; or {_ignore('input')}", "input")
    if value.strip() == prompt.strip():
        raise BadRow("mixture", f"found the prompt again; {_ignore('input')}", "input")
    return "\n".join(text for text in (prompt, encodable(value, "input")) if text)


def _history(value: object, ignored: set[str]) -> Messages:
    """Earlier turns: messages, or pairs of the user's text and the assistant's."""
    if not value:
        return []
    if isinstance(value, list) and all(isinstance(turn, list | tuple) and len(turn) == 2 for turn in value):
        roles = ("user", "assistant")
        value = [{"role": role, "content": text} for turn in value for role, text in zip(roles, turn, strict=True)]
    if not isinstance(value, list):
        expected = "a list of messages or of [user, assistant] texts"
        raise BadRow("type", f"found {kind_of(value)}, expected {expected}; or {_ignore('history')}", "history")
    messages = checked(value, "history", ignored)
    assert not isinstance(messages, str)
    return messages


def _parsed(found: Mapping[str, Any], field: str, kind: type[list] | type[dict]) -> Any:
    """A list or an object, or the JSON text of one."""
    value = found.get(field) or kind()
    if isinstance(value, str):
        try:
            value = json.loads(value) or kind()
        except (ValueError, RecursionError):
            raise BadRow("type", f"found a text that is not JSON; or {_ignore(field)}", field) from None
    if not isinstance(value, kind):
        expected = f"{kind_of(kind())} or the JSON text of one"
        raise BadRow("type", f"found {kind_of(value)}, expected {expected}; or {_ignore(field)}", field)
    return as_json(value, field)


def _ignore(field: str) -> str:
    return f"type data.columns.{field}=null to ignore it"
