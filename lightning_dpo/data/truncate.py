"""Prompts that are too long lose their oldest part, never the head: BOS, system message and role marks stay."""

from collections.abc import Callable
from typing import NamedTuple

from lightning_dpo.data.rows import Dropped, Messages, Row

UNUSED = "\ue000"
"""A private character: where two renderings of a message first differ, its content begins."""

Span = tuple[int, int]


class PromptEncoder(NamedTuple):
    """What a prompt is rendered and encoded by.

    render: messages -> text. encode: text -> ids and the character span of each. bos: what stands before every text.
    """

    render: Callable[[Messages], str]
    encode: Callable[[str], tuple[list[int], list[Span]]]
    bos: list[int]


def truncate_prompt(encoder: PromptEncoder, row: Row, prompt: list[int], merged: int, limit: int | None) -> list[int]:
    """At most `limit` tokens of a prompt; None: all of them.

    A text loses tokens after the BOS. A chat loses its oldest turns up to the next user message while it is too long,
    and then the beginning of what is left of its first message.

    Args:
        prompt: the tokens that both sides share.
        merged: tokens at the end of the prompt alone that merge with the responses, and are theirs.

    Errors: Dropped("prompt_too_long") if what must stay is too long by itself.
    """
    if limit is None or len(prompt) <= limit:
        return prompt
    if isinstance(row.prompt, str):
        return _without(prompt, len(encoder.bos), len(prompt), limit)
    messages = row.prompt
    while True:
        ids, offsets = encoder.encode(encoder.render(messages))
        ids, offsets = ids[: len(ids) - merged], offsets[: len(ids) - merged]
        if len(ids) <= limit:
            return ids
        shorter = _without_oldest_turn(messages)
        if shorter is None:
            begin, end = _content_span(encoder, messages)
            inside = [i for i, (a, b) in enumerate(offsets) if a >= begin and b <= end and a < b]
            return _without(ids, inside[0], inside[-1] + 1, limit) if inside else _without(ids, 0, 0, limit)
        messages = shorter


def _without(ids: list[int], begin: int, end: int, limit: int) -> list[int]:
    """`ids` without the first tokens of [begin, end), as many as it takes."""
    surplus = len(ids) - limit
    if surplus >= end - begin:
        raise Dropped("prompt_too_long")
    return ids[:begin] + ids[begin + surplus :]


def _without_oldest_turn(messages: Messages) -> Messages | None:
    """The chat from its next user message on, the system messages kept; None if there is no later one."""
    head = next(i for i, m in enumerate(messages) if m["role"] != "system")
    later = [i for i in range(head + 1, len(messages)) if messages[i]["role"] == "user"]
    return messages[:head] + messages[later[0] :] if later else None


def _content_span(encoder: PromptEncoder, messages: Messages) -> tuple[int, int]:
    """Where the content of the first message after the system's stands in the rendered prompt, in characters."""
    at = next(i for i, m in enumerate(messages) if m["role"] != "system")
    other = [*messages[:at], {**messages[at], "content": UNUSED}, *messages[at + 1 :]]
    text, probe = encoder.render(messages), encoder.render(other)
    begin = probe.index(UNUSED)
    return begin, len(text) - (len(probe) - begin - len(UNUSED))
