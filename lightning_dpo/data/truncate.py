"""Truncation of long prompts on the left. BOS, system message and role marks stay."""

from bisect import bisect_left
from collections.abc import Callable
from typing import NamedTuple

from lightning_dpo.data.rows import SYSTEM, Dropped, Messages, Row

PROBE = "\ue000"
"""A private-use character. Where it appears in a rendered chat is where a message's content begins."""

Span = tuple[int, int]


class PromptEncoder(NamedTuple):
    """How a prompt is rendered and encoded.

    render: messages -> text. encode: text -> token ids and the character span of each. bos: ids before every text.
    """

    render: Callable[[Messages], str]
    encode: Callable[[str], tuple[list[int], list[Span]]]
    bos: list[int]


def truncate_prompt(encoder: PromptEncoder, row: Row, prompt: list[int], merged: int, limit: int | None) -> list[int]:
    """At most `limit` tokens of a prompt; None: no limit.

    A text loses the tokens after its BOS. A chat loses its oldest turns, up to the next user message each time, and
    once none can go, the beginning of its first remaining message.

    Args:
        prompt: the prompt tokens that both sides share.
        merged: number of tokens at the end of the encoded prompt that merge with the responses and belong to them.

    Errors: Dropped("prompt_too_long") if the part that must stay is longer than `limit`.
    """
    if limit is None or len(prompt) <= limit:
        return prompt
    if isinstance(row.prompt, str):
        return _without(prompt, len(encoder.bos), len(prompt), limit)
    chat = row.prompt
    head = next(i for i, m in enumerate(chat) if m["role"] not in SYSTEM)
    starts = [head, *(i for i in range(head + 1, len(chat)) if chat[i]["role"] == "user")]

    def kept(start: int) -> tuple[Messages, list[int], list[Span]]:
        messages = chat[:head] + chat[start:]
        ids, offsets = encoder.encode(encoder.render(messages))
        return messages, ids[: len(ids) - merged], offsets[: len(ids) - merged]

    # Bisected, because each try renders and encodes the rest. Less remains, the later the start.
    at = bisect_left(starts, True, key=lambda start: len(kept(start)[1]) <= limit)
    messages, ids, offsets = kept(starts[min(at, len(starts) - 1)])
    if len(ids) <= limit:
        return ids
    begin, end = _content_span(encoder, messages)
    inside = [i for i, (a, b) in enumerate(offsets) if a >= begin and b <= end and a < b]
    return _without(ids, inside[0], inside[-1] + 1, limit) if inside else _without(ids, 0, 0, limit)


def _without(ids: list[int], begin: int, end: int, limit: int) -> list[int]:
    """`ids` cut down to `limit` by removing the first tokens of [begin, end)."""
    surplus = len(ids) - limit
    if surplus >= end - begin:
        raise Dropped("prompt_too_long")
    return ids[:begin] + ids[begin + surplus :]


def _content_span(encoder: PromptEncoder, messages: Messages) -> tuple[int, int]:
    """Character span of the first non-system message's content in the rendered prompt."""
    at = next(i for i, m in enumerate(messages) if m["role"] not in SYSTEM)
    probed = encoder.render([*messages[:at], {**messages[at], "content": PROBE}, *messages[at + 1 :]])
    begin = probed.find(PROBE)
    if begin < 0:  # left out by the template
        return 0, 0
    return begin, len(encoder.render(messages)) - (len(probed) - begin - len(PROBE))
