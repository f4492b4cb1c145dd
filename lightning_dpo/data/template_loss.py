"""What a chat template leaves out of the messages: content in, content out."""

import json
import os
import re
from collections.abc import Iterator
from typing import Any

from lightning_dpo.data.rows import SYSTEM, Messages, Note, printable, text_of

LOSS = "template_loss"
"""The kind of a bad row whose text lacks something. It stops a run whatever data.on_bad_row says."""
THINK = re.compile(r"</?think(?:ing)?>")
REASONING = ("reasoning", "reasoning_content", "thinking")
PRINTED_BY_FEW = ("name", "tool_call_id")
"""Keys that most templates do not print. Without them no text is lost, so they are only counted as ignored."""


def left_out(text: str, messages: Messages, tools: Any, trained_from: int) -> Iterator[tuple[Note, str]]:
    """What a rendered text lacks, each with a quotation.

    The contents must stand in the text without their surrounding space, in order. Some templates move the system
    message, so it may stand anywhere. Reasoning, inside the content or beside it, is found apart from the answer,
    because templates set it anew. Texts in JSON's spelling count, because some templates print tool results so.

    Kinds of notes: "lost" is a loss; "reasoning" is that of turns before the trained ones, which templates leave out
    on purpose (Qwen3, DeepSeek); "unprinted" is one of PRINTED_BY_FEW; "read" is a key that 0.1.0 ignored.

    Args:
        tools: those given to the template.
        trained_from: index of the first trained message.
    """
    at = 0
    for i, message in enumerate(messages):
        before = at
        reasoning = [str(message[key]) for key in REASONING if key in message]
        content = text_of(message).strip()
        after = _after(text, content, 0 if message["role"] in SYSTEM else at)
        if after < 0 and message["role"] == "assistant" and (parts := THINK.split(content))[1:]:
            reasoning, content = [*reasoning, *parts[:-1]], parts[-1].strip()
            after = _after(text, content, at)
        for thought in reasoning:
            if _after(text, thought.strip(), at) < 0:
                yield ("lost", "reasoning") if i >= trained_from else ("reasoning", ""), thought
        yield from ((("read", key), "") for key in REASONING if key in message)
        if after < 0:
            yield ("lost", f"message of role {message['role']}"), content
        elif message["role"] not in SYSTEM:
            at = after
        for called in _texts(message.get("tool_calls", [])):
            if _after(text, called, before) < 0:
                yield ("lost", "tool call"), called
        for key in PRINTED_BY_FEW:
            if key in message:
                yield ("read" if str(message[key]) in text else "unprinted", key), str(message[key])
    for tool in tools or []:
        function = tool.get("function", tool) if isinstance(tool, dict) else {}
        for key in ("name", "description"):
            if _after(text, str(function.get(key) or "").strip(), 0) < 0:
                yield ("lost", "tool"), str(function[key])


def message(what: str, quotation: str) -> str:
    """Why a row is refused whose text lacks something."""
    return (
        f"the chat template leaves out the {what} {printable(quotation.strip())}; type data.chat_template=FILE with "
        "one that prints it, or data.on_template_loss=warn to train without it"
    )


def another_prompt(start: str, text: str) -> str:
    """Why a row is refused whose text does not begin with the prompt of inference."""
    same = len(os.path.commonprefix([start, text]))
    return (
        f"the chat template's prompt for inference goes on with {printable(start[same:], 30)}, where this row has "
        f"{printable(text[same : same + 30], 30)}, so the model would be asked differently than it is trained; type "
        "data.chat_template=FILE with one that prints both alike (some do with 'data.chat_template_kwargs="
        "{enable_thinking: false}'), or data.on_template_loss=warn"
    )


def with_texts(messages: Messages) -> Messages:
    """The messages with the arguments of tool calls as JSON texts."""

    def spelled(call: Any) -> Any:
        if "function" in call:
            return {**call, "function": spelled(call["function"])}
        return {**call, "arguments": json.dumps(call["arguments"], ensure_ascii=False)} if "arguments" in call else call

    return [m | {"tool_calls": list(map(spelled, m["tool_calls"]))} if "tool_calls" in m else m for m in messages]


def _after(text: str, part: str, start: int) -> int:
    """Where `part` ends in the text from `start` on; -1 if it is not there."""
    for spelling in (lambda: part, lambda: json.dumps(part, ensure_ascii=False)[1:-1], lambda: json.dumps(part)[1:-1]):
        if (found := text.find(spelled := spelling(), start)) >= 0:
            return found + len(spelled)
    return -1


def _texts(value: Any) -> Iterator[str]:
    """The names and arguments of tool calls that are texts. Arguments may be JSON."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in ("type", "id"):
                yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        try:
            parsed = json.loads(value) if value[:1] in ("{", "[") else value
        except ValueError:
            parsed = value
        yield from [value.strip()] if isinstance(parsed, str) else _texts(parsed)
