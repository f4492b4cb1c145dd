"""What was read otherwise than it is stored: ignored columns, texts beside a chat template, and the like."""

from collections.abc import Sequence
from typing import Any

from lightning_dpo.data.rows import printable

SHOWN = 12
"""Names that a line lists."""

FACTS = {
    "reasoning": "{rows:,} rows whose earlier reasoning the chat template leaves out",
    "end": "the end of turn {quoted} is several tokens, so EOS ends the responses",
}
"""Kinds of notes that the page states, and how."""

WARNINGS = {
    "lost": "in {rows:,} rows the chat template does not print the {what}; use another data.chat_template",
    "unknown": "{rows:,} rows hold text that the tokenizer's vocabulary lacks, so its unknown token stands there; type "
    "another model.path or model.tokenizer",
    "unequal_turns": "in {rows:,} rows one side has more turns than the other, so the last turn of one is compared "
    "with an earlier turn of the other; shorten the longer one in the data",
}
"""Kinds of notes that are warnings, and their words."""

Notes = Sequence[tuple[str, str, int]]
"""Kind, what it is about, and the number of rows, as in the manifest of a tokenised source."""


def ignored(notes: Notes) -> dict[str, int]:
    """Rows by the name of the column or key that is not read, most first."""
    names = {"ignored": "{}", "unprinted": "{} of messages"}
    found = {names[kind].format(what): rows for kind, what, rows in notes if kind in names}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def facts(source: dict[str, Any]) -> list[str]:
    """Lines about a source of the report."""
    shown = list(source["ignored"].items())[:SHOWN]
    parts = [f"{printable(name, 60)[1:-1]} ({rows:,}{'' if i else ' rows'})" for i, (name, rows) in enumerate(shown)]
    if (more := len(source["ignored"]) - SHOWN) > 0:
        parts.append(f"and {more} more")
    return ([f"ignored: {', '.join(parts)}"] if parts else []) + _said(FACTS, source)


def warned(source: dict[str, Any]) -> list[str]:
    """Warnings about a source of the report."""
    return _said(WARNINGS, source)


def _said(words: dict[str, str], source: dict[str, Any]) -> list[str]:
    return [
        words[kind].format(what=what, quoted=printable(what), rows=rows)
        for kind, what, rows in source["notes"]
        if kind in words
    ]
