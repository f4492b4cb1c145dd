"""Chats as text: renders messages by a chat template and finds the assistant's turns in the result.

The text is not taken on trust. What the messages say must stand in it (template_loss.py), and the prompt of inference
must be its beginning; otherwise the row is refused or, with `on_template_loss="warn"`, counted.
"""

import inspect
import os
import re
import string
from collections.abc import Iterator, Mapping
from datetime import date as Date
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from lightning_dpo.data import template_loss
from lightning_dpo.data.rows import BadRow, Messages, Note, Response, Row, printable, text_of
from lightning_dpo.data.truncate import PROBE
from lightning_dpo.errors import DataError

NO_OPTIONS: Mapping[str, Any] = {}
Turns = Literal["last", "all"]
OnLoss = Literal["stop", "warn"]
RESERVED = {"messages", *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters} - {"documents"}
"""Names that chat_template_kwargs may not hold, because rows and code set them."""


class Side(NamedTuple):
    """A prompt with its response as text.

    spans: the character spans that are trained; None: everything after the prompt. end: the token that ends the
    response. notes: what the data page counts.
    """

    text: str
    end: int
    spans: list[tuple[int, int]] | None = None
    notes: tuple[Note, ...] = ()


class EndOfTurn(NamedTuple):
    """What a chat template prints behind the last assistant message.

    printed: all of it. kept: its beginning up to the token that ends the turn, whose id is `token`; "" and None if no
    single token ends it.
    """

    printed: str
    kept: str = ""
    token: int | None = None


class Chat:
    """Renders messages by the tokenizer's chat template.

    Args:
        date: the day (YYYY-MM-DD) for a template that prints the current one (`strftime_now`, as in Llama 3).
        turns: which assistant turns of a response are trained.
        on_loss: whether a row that the template does not print whole is refused, or counted.
        options: variables of the template, for all rows.

    Errors: DataError if the tokenizer has no template, if the template has no such variable, or if it prints the day
    and `date` is None, because the same command would then train on other tokens tomorrow. BadRow if the template
    refuses the messages or leaves something out.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        date: str | None = None,
        turns: Turns = "last",
        on_loss: OnLoss = "stop",
        options: Mapping[str, Any] | None = None,
    ):
        self.tokenizer: Any = tokenizer  # the base class does not declare the attributes of fast tokenizers
        self.date, self._date_macro = date, "" if date is None else _date_macro(date)
        self.turns, self.on_loss, self.options = turns, on_loss, dict(options or {})
        self._ends: dict[str, EndOfTurn] = {}
        self._prints_day = "strftime_now" in str(tokenizer.chat_template)
        if date is not None and not self._prints_day:
            raise DataError(f"data.date={date}: the chat template prints no day; leave it out")
        for name in self.options:
            if name in RESERVED or not self._has(name):
                reason = "is set by the rows" if name in RESERVED else "is no variable of the chat template"
                raise DataError(f"data.chat_template_kwargs.{name} {reason}; leave it out")

    def _has(self, name: str) -> bool:
        """Whether the template has a variable. `tools` is checked by what it prints."""
        return name == "tools" or re.search(rf"\b{re.escape(name)}\b", str(self.tokenizer.chat_template)) is not None

    def prompt(self, messages: Messages, options: Mapping[str, Any] = NO_OPTIONS) -> str:
        """The text before the response."""
        if messages[-1]["role"] == "assistant":
            return self.render(messages, options, continue_final_message=True)
        return self.render(messages, options, add_generation_prompt=True)

    def side(self, row: Row, response: Response, prompt: str) -> Side:
        """The row's prompt, rendered as `prompt`, and a response, up to the last end of turn.

        The response continues a final assistant message of the prompt.
        """
        messages, first = _joined(row.prompt, response)
        text = self.render(messages, row.options)
        places = [i for i in range(first, len(messages)) if messages[i]["role"] == "assistant"]
        trained = places if self.turns == "all" else places[-1:]
        starts = [prompt if i == first else self.prompt(messages[:i], row.options) for i in trained]
        notes = [*self._losses(text, starts[-1], messages, row.options, trained[0])]
        text, end = self._ended(messages, row.options, text)
        if end.token is None and end.printed.strip():
            notes.append(("end", end.printed.strip()))
        if end.token not in self._read_before:
            notes.append(("read", "end of turn"))
        notes += [("ignored", f"{name} of chat_template_kwargs") for name in row.options if not self._has(name)]
        spans = self._spans(text, starts, messages, trained, row.options) if len(messages) > first + 1 else None
        return Side(text, self.tokenizer.eos_token_id if end.token is None else end.token, spans, tuple(notes))

    def _losses(
        self, text: str, start: str, messages: Messages, options: Mapping[str, Any], trained_from: int
    ) -> Iterator[Note]:
        """Notes on what the text lacks. Errors: BadRow for a loss that stops the run."""
        for note, quotation in template_loss.left_out(text, messages, options.get("tools"), trained_from):
            if note[0] == "lost" and self.on_loss == "stop":
                raise BadRow(template_loss.LOSS, template_loss.message(note[1], quotation))
            yield note
        if not text.startswith(start):
            if self.on_loss == "stop":
                raise BadRow(template_loss.LOSS, template_loss.another_prompt(start, text))
            yield "lost", "prompt of inference"

    def _spans(
        self, text: str, starts: list[str], messages: Messages, trained: list[int], options: Mapping[str, Any]
    ) -> list[tuple[int, int]]:
        """Where the trained turns stand in the text."""
        ends = [text]
        for i in reversed(trained[:-1]):
            ends.insert(0, self._ended(messages[: i + 1], options, self.render(messages[: i + 1], options))[0])
        if not all(text.startswith(part) for part in [*starts[:-1], *ends]):
            raise BadRow(
                "template",
                "the chat template prints earlier turns differently when others follow (Qwen3 and DeepSeek leave out "
                "their reasoning), so they cannot be trained in one row; type data.turns=last",
            )
        return [(len(os.path.commonprefix([start, text])), len(end)) for start, end in zip(starts, ends, strict=True)]

    def _ended(self, messages: Messages, options: Mapping[str, Any], text: str) -> tuple[str, EndOfTurn]:
        end = self._end(messages, options, text)
        return text[: len(text) - len(end.printed)] + end.kept, end

    def _end(self, messages: Messages, options: Mapping[str, Any], text: str) -> EndOfTurn:
        """What the template prints behind the last message, found by a mark in place of its content. A text that ends
        as earlier ones did, right behind the content, is not rendered again. Behind tool calls, another token may end.
        """
        answer = template_loss.THINK.split(text_of(messages[-1]))[-1].strip()
        for printed, end in self._ends.items():
            if answer and text.endswith(printed) and text[: len(text) - len(printed)].rstrip().endswith(answer):
                return end
        calls = "tool_calls" in messages[-1]
        last = {key: value for key, value in messages[-1].items() if key != "tool_calls"}
        before, mark, printed = self.render([*messages[:-1], {**last, "content": PROBE}], options).rpartition(PROBE)
        if calls and not text.endswith(printed):
            tail = [token for token in self._added if text.rstrip().endswith(token)]
            printed = text[text.rindex(max(tail, key=len)) :] if tail else None
        if not mark or printed is None or not text.endswith(printed):
            raise BadRow("template", f"the chat template prints no end of turn that is known, {printable(text[-40:])}")
        if printed not in self._ends:
            self._ends[printed] = self._end_token(before, printed)
        return self._ends[printed]

    def _end_token(self, before: str, printed: str) -> EndOfTurn:
        """The first added token that is printed, or the only token."""
        if found := [token for token in self._added if token in printed]:
            first = min(found, key=lambda token: (printed.find(token), -len(token)))
            return EndOfTurn(printed, printed[: printed.find(first) + len(first)], self._added[first])
        kept = printed.rstrip()
        encoded = self.tokenizer(before + kept, add_special_tokens=False, return_offsets_mapping=True)
        start = len(before) + len(kept) - len(kept.lstrip())
        if kept and encoded["offset_mapping"][-1][0] == start:
            return EndOfTurn(printed, kept, encoded["input_ids"][-1])
        return EndOfTurn(printed)

    @cached_property
    def _read_before(self) -> set[int | None]:
        """What 0.1.0 took for an end of turn: nothing, EOS, or a token that is flagged special."""
        added = self.tokenizer.added_tokens_decoder
        return {None, self.tokenizer.eos_token_id, *(i for i in added if added[i].special)}

    @cached_property
    def _added(self) -> dict[str, int]:
        """Ids of the tokens that are found in a text before all others, apart from mere space."""
        added = {token.content: i for i, token in self.tokenizer.added_tokens_decoder.items() if token.content.strip()}
        return added | {self.tokenizer.eos_token: self.tokenizer.eos_token_id}

    def render(self, messages: Messages, options: Mapping[str, Any] = NO_OPTIONS, **mode: bool) -> str:
        if not self.tokenizer.chat_template:
            raise DataError("rows are chats, but the tokenizer has no template; type data.chat_template=FILE (Jinja)")
        if self._prints_day and self.date is None:
            raise DataError(
                "the chat template prints the current day (strftime_now), so the same command would train on other "
                f"tokens tomorrow; type data.date={Date.today()}, or another day"
            )
        try:
            template = self._date_macro + self.tokenizer.get_chat_template(tools=options.get("tools"))
            given = {**self.options, **options, **mode, "chat_template": template, "tokenize": False}
            try:
                return self.tokenizer.apply_chat_template(messages, **given)
            except TypeError:  # of a template that joins arguments to other text (DeepSeek-V3)
                if (spelled := template_loss.with_texts(messages)) == messages:
                    raise
                return self.tokenizer.apply_chat_template(spelled, **given)
        except Exception as error:  # Jinja's own, and whatever a template raises
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BadRow("template", f"the chat template refuses the messages: {printable(first, 120)}") from None


def _joined(prompt: Any, response: Response) -> tuple[Messages, int]:
    """All messages, and the index of the first that belongs to the response."""
    turns = [{"role": "assistant", "content": response}] if isinstance(response, str) else response
    if prompt[-1]["role"] != "assistant":
        return [*prompt, *turns], len(prompt)
    content = text_of(prompt[-1]) + text_of(turns[0])
    return [*prompt[:-1], {**prompt[-1], **turns[0], "content": content}, *turns[1:]], len(prompt) - 1


def _date_macro(date: str) -> str:
    """A Jinja macro in place of the function `strftime_now` of transformers, which reads the clock.

    A function passed as a render variable would not arrive, because transformers turns those into plain data.
    """
    try:
        day = Date.fromisoformat(date)
    except ValueError as error:
        raise DataError(f"data.date={date}: {error}; type a day such as 2026-01-31") from None
    codes = [f"%{dash}{letter}" for dash in ("", "-") for letter in string.ascii_letters]
    replaced = "".join(f" | replace({code!r}, {day.strftime(code)!r})" for code in codes)
    return "{%- macro strftime_now(format) -%}{{ format" + replaced + " }}{%- endmacro -%}"


def template_text(template: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A template from data.chat_template: Jinja text if it contains a brace, otherwise a name or the path of a file."""
    if "{" in template:
        return template
    if isinstance(tokenizer.chat_template, dict) and template in tokenizer.chat_template:
        return tokenizer.chat_template[template]
    try:
        return Path(template).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.chat_template={template}: not a readable template file: {error}") from None
