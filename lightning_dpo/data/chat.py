"""Chats as text: renders messages by a chat template and finds the assistant's turns in the result."""

import string
from datetime import date as Date
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from lightning_dpo.data.rows import BadRow, Messages, Response, printable
from lightning_dpo.errors import DataError

Span = tuple[int, int]


class EndOfTurn(NamedTuple):
    """What a chat template prints after the last assistant message.

    printed: all of it. kept: the beginning up to its first special token, whose id is `token_id`; "" and None if it
    prints no special token.
    """

    printed: str
    kept: str
    token_id: int | None


class Chat:
    """Renders messages by the tokenizer's chat template.

    Args:
        date: the day (YYYY-MM-DD) for a template that prints the current one (`strftime_now`, as in Llama 3).

    Errors: DataError if the tokenizer has no template, or if the template prints the day and `date` is None, because
    the same command would then train on other tokens tomorrow. BadRow if the template refuses the messages.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, date: str | None = None):
        self.tokenizer: Any = tokenizer  # the base class does not declare the attributes of fast tokenizers
        self.date, self._date_macro = date, "" if date is None else _date_macro(date)
        self._prints_day = "strftime_now" in str(tokenizer.chat_template)
        if date is not None and not self._prints_day:
            raise DataError(f"data.date={date}: the chat template prints no day; leave it out")

    def prompt(self, messages: Messages) -> str:
        """The text before the response."""
        if messages[-1]["role"] == "assistant":
            return self.render(messages, continue_final_message=True)
        return self.render(messages, add_generation_prompt=True)

    def conversation(self, prompt: Messages, response: Response) -> tuple[str, list[Span] | None]:
        """Prompt and response up to the last end of turn; for several turns, also the spans of the assistant's.

        The response continues a final assistant message of the prompt.
        """
        turns = [{"role": "assistant", "content": response}] if isinstance(response, str) else response
        if prompt[-1]["role"] == "assistant":
            first = {"role": "assistant", "content": prompt[-1]["content"] + turns[0]["content"]}
            messages = [*prompt[:-1], first, *turns[1:]]
        else:
            messages = [*prompt, *turns]
        text = self._ended(messages)
        if isinstance(response, str):
            return text, None
        first_turn = len(messages) - len(turns)
        places = [i for i in range(first_turn, len(messages)) if messages[i]["role"] == "assistant"]
        starts = [self.prompt(prompt if i == first_turn else messages[:i]) for i in places]
        ends = [self._ended(messages[: i + 1]) for i in places]
        if not all(text.startswith(part) for part in [*starts, *ends]):
            raise BadRow(
                "template",
                "the chat template prints earlier turns differently when others follow, so the trained turns cannot be "
                "located; use single-turn rows or another data.chat_template",
            )
        return text, [(len(start), len(end)) for start, end in zip(starts, ends, strict=True)]

    def _ended(self, messages: Messages) -> str:
        text, end = self.render(messages), self.end_of_turn
        if not text.endswith(end.printed):
            raise BadRow(
                "template", f"the chat template ends this row with {printable(text[-20:])}, others with {end.printed!r}"
            )
        return text[: len(text) - len(end.printed)] + end.kept

    @cached_property
    def end_of_turn(self) -> EndOfTurn:
        mark = "RESPONSE"
        text = self.render([{"role": "user", "content": "x"}, {"role": "assistant", "content": mark}])
        printed = text[text.rfind(mark) + len(mark) :]
        special = {token.content: i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        special[self.tokenizer.eos_token] = self.tokenizer.eos_token_id
        found = [content for content in special if content in printed]
        if not found:
            return EndOfTurn(printed, "", None)
        first = min(found, key=lambda content: (printed.find(content), -len(content)))
        return EndOfTurn(printed, printed[: printed.find(first) + len(first)], special[first])

    def render(self, messages: Messages, **options) -> str:
        if not self.tokenizer.chat_template:
            raise DataError("rows are chats, but the tokenizer has no template; type data.chat_template=FILE (Jinja)")
        if self._prints_day and self.date is None:
            raise DataError(
                "the chat template prints the current day (strftime_now), so the same command would train on other "
                f"tokens tomorrow; type data.date={Date.today()}, or another day"
            )
        try:
            template = self._date_macro + self.tokenizer.get_chat_template()
            return self.tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options)
        except Exception as error:  # Jinja's own, and whatever a template raises
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BadRow("template", f"the chat template refuses the messages: {printable(first, 120)}") from None


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


def template_text(template: str) -> str:
    """A template from data.chat_template: Jinja text if it contains a brace, otherwise the path of a file."""
    if "{" in template:
        return template
    try:
        return Path(template).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.chat_template={template}: not a readable template file: {error}") from None
