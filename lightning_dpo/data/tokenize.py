"""Rows -> token ids, by one rule.

1. Prompt and response are encoded together, because a tokenizer may merge characters across their border.
2. Prompt, prompt + chosen and prompt + rejected are split at their longest common token prefix: the same split for both
   sides, so both responses are scored given the same tokens. A token merged over the border belongs to the response.
3. Each response that is not cut ends with exactly one end token: the chat template's own end of turn (what the
   template prints after it is left out), or EOS where there is no template or it prints no special token. A cut
   response has none.
4. A tokenizer that wants a BOS gets exactly one, whether the template prints it or not.
5. A response of several turns is trained on the assistant's last one, or on all of them (`turns`); the rest is context.
6. Prompts are cut first, on the left (`max_prompt_length`, in truncate.py), then responses on the right (`max_length`).
"""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from lightning_dpo.data.chat import Chat
from lightning_dpo.data.rows import BadRow, Dropped, Messages, Response, Row
from lightning_dpo.data.truncate import PromptEncoder, truncate_prompt
from lightning_dpo.errors import DataError

Span = tuple[int, int]
FLAGS = (
    *("merged_border", "special_token_in_text", "double_bos", "cut_prompt", "cut_chosen", "cut_rejected", "no_space"),
    "prompt_repeated",
)
"""What is noted about a pair, one bit each, in this order."""


class Side(NamedTuple):
    """A full text, and the character spans that are trained; None: all that follows the prompt."""

    text: str
    spans: list[Span] | None = None


class Encoded(NamedTuple):
    """Token ids of one pair after cutting.

    chosen_trained, rejected_trained: per response token, whether it is scored; None: all are.
    flags: bits in the order of FLAGS. tokens_cut: of the prompt and of both responses.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    chosen_trained: list[bool] | None
    rejected_trained: list[bool] | None
    flags: int
    tokens_cut: int


class PairTokenizer:
    """Encodes rows by the rule of this module.

    Args:
        tokenizer: with a chat template if rows are chats.
        max_length: longest prompt + response in tokens; longer responses are cut on the right. None: no limit.
        max_prompt_length: longest prompt in tokens; longer prompts are cut on the left, behind the system message.
        turns: which assistant turns of a response of several are trained.
        date: the day (YYYY-MM-DD) for a chat template that prints one.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None = None,
        max_prompt_length: int | None = None,
        turns: Literal["last", "all"] = "last",
        date: str | None = None,
    ):
        self.tokenizer: Any = tokenizer  # the base class does not declare what fast tokenizers have
        self.max_length, self.max_prompt_length, self.turns = max_length, max_prompt_length, turns
        if tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no EOS token, so a response could never end")
        if not tokenizer.is_fast:
            raise DataError("the tokenizer is a slow one, without character offsets; save it with a tokenizer.json")
        self.chat = Chat(tokenizer, date)

    def encode(self, rows: Sequence[Row]) -> list[Encoded | Dropped | BadRow]:
        """Each row's tokens, or why it has none; one answer per row, in order.

        Dropped: `prompt_too_long` (it fills max_length, or what must stay of it is longer than max_prompt_length),
        `no_prompt_token` (nothing precedes the first response token), `identical_tokens` (of different texts),
        `identical_after_cut`, `nothing_trained` (all trained tokens are cut).
        """
        rendered = [self.rendered(row) for row in rows]
        good = [texts for texts in rendered if not isinstance(texts, BadRow)]
        ids = iter(self.ids([side.text for texts in good for side in texts]))
        answers: list[Encoded | Dropped | BadRow] = []
        for row, texts in zip(rows, rendered, strict=True):
            if isinstance(texts, BadRow):
                answers.append(texts)
                continue
            try:
                answers.append(self._pair(row, texts, [next(ids), next(ids), next(ids)]))
            except (Dropped, BadRow) as reason:
                answers.append(reason)
        return answers

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids with exactly one BOS where the tokenizer wants one."""
        encoded = self.backend().encode_batch_fast(texts, add_special_tokens=False)
        return [self._with_bos(e.ids) for e in encoded]

    def ids_and_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        """The same ids, with the character span of each; a BOS that the text does not hold has an empty one."""
        encoded = self.backend().encode(text, add_special_tokens=False)
        ids = self._with_bos(encoded.ids)
        return ids, [(0, 0)] * (len(ids) - len(encoded.ids)) + encoded.offsets

    def backend(self) -> Tokenizer:
        """The fast tokenizer, without the padding and the cut that an earlier call has left behind."""
        backend: Tokenizer = self.tokenizer.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        return backend

    def rendered(self, row: Row) -> tuple[Side, Side, Side] | BadRow:
        """Prompt, prompt + chosen and prompt + rejected as text, or why the chat template has none."""
        try:
            return Side(self.prompt_text(row)), self._side(row, row.chosen), self._side(row, row.rejected)
        except BadRow as reason:
            return reason

    def prompt_text(self, row: Row) -> str:
        return row.prompt if isinstance(row.prompt, str) else self.chat.prompt(row.prompt)

    def _side(self, row: Row, response: Response) -> Side:
        if not isinstance(row.prompt, str):
            side = Side(*self.chat.conversation(row.prompt, response))
        elif isinstance(response, str):
            side = Side(row.prompt + response)
        else:
            side = Side(row.prompt + "".join(m["content"] for m in response), _text_spans(row.prompt, response))
        return side if side.spans is None or self.turns == "all" else side._replace(spans=side.spans[-1:])

    def _pair(self, row: Row, texts: tuple[Side, Side, Side], ids: list[list[int]]) -> Encoded:
        alone, full_chosen, full_rejected = ids
        split = common_prefix(ids)
        flags = {
            "merged_border": split < len(alone),
            "special_token_in_text": self._holds_special(row),
            "double_bos": bool(self.bos) and alone[len(self.bos) : 2 * len(self.bos)] == self.bos,
            "no_space": row.runs_together,
            "prompt_repeated": row.repeats_prompt,
        }
        encoder = PromptEncoder(self.chat.prompt, self.ids_and_offsets, self.bos)
        prompt = truncate_prompt(encoder, row, alone[:split], len(alone) - split, self.max_prompt_length)
        if not prompt:
            raise Dropped("no_prompt_token")
        end = self.end_id(row)
        room = None if self.max_length is None else self.max_length - len(prompt)
        if room is not None and room <= 0:
            raise Dropped("prompt_too_long")
        chosen, rejected = _ended(full_chosen[split:], end), _ended(full_rejected[split:], end)
        trained = [self._trained(side, split, len(r)) for side, r in ((texts[1], chosen), (texts[2], rejected))]
        kept = [side[:room] for side in (chosen, rejected)]
        masks = [mask and mask[:room] for mask in trained]
        if kept[0] == kept[1] and masks[0] == masks[1]:
            raise Dropped("identical_tokens" if chosen == rejected else "identical_after_cut")
        if any(mask is not None and not any(mask) for mask in masks):
            raise Dropped("nothing_trained")
        flags |= {
            "cut_prompt": len(prompt) < split,
            "cut_chosen": len(kept[0]) < len(chosen),
            "cut_rejected": len(kept[1]) < len(rejected),
        }
        cut = split - len(prompt) + len(chosen) - len(kept[0]) + len(rejected) - len(kept[1])
        bits = sum(bool(flags[name]) << i for i, name in enumerate(FLAGS))
        return Encoded(prompt, kept[0], kept[1], masks[0], masks[1], bits, cut)

    def _trained(self, side: Side, split: int, length: int) -> list[bool] | None:
        """A token is trained if it touches a trained span: one merged over a border belongs to the response."""
        if side.spans is None:
            return None
        _, offsets = self.ids_and_offsets(side.text)
        mask = [any(a < end and b > start for start, end in side.spans) for a, b in offsets[split:]]
        return (mask + [True] * (length - len(mask)))[:length]  # an end token was added, or the second one taken away

    def end_id(self, row: Row) -> int:
        """The token that ends an uncut response of this row."""
        template_end = None if isinstance(row.prompt, str) else self.chat.end_of_turn.token_id
        return self.tokenizer.eos_token_id if template_end is None else template_end

    @cached_property
    def bos(self) -> list[int]:
        """What the tokenizer puts before a text by itself: one BOS, or nothing."""
        plain = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        full = self.tokenizer("a")["input_ids"]
        starts = [i for i in range(len(full)) if full[i : i + len(plain)] == plain]
        return full[: starts[0]] if starts else []

    def _with_bos(self, ids: list[int]) -> list[int]:
        return ids if ids[: len(self.bos)] == self.bos else self.bos + ids

    @cached_property
    def _special(self) -> re.Pattern | None:
        added = [t.content for t in self.tokenizer.added_tokens_decoder.values() if t.special]
        return re.compile("|".join(map(re.escape, added))) if added else None

    def _holds_special(self, row: Row) -> bool:
        """Whether a text spells a special token, which is then encoded as that token."""
        if self._special is None:
            return False
        parts = (row.prompt, row.chosen, row.rejected)
        texts = [p if isinstance(p, str) else "\n".join(m["content"] for m in p) for p in parts]
        return any(self._special.search(text) for text in texts)


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the longest common prefix.

    >>> common_prefix([[1, 2, 3], [1, 2, 4], [1, 2, 3, 5]])
    2
    """
    shortest = min(map(len, sequences))
    first = sequences[0][:shortest]
    if all(s[:shortest] == first for s in sequences[1:]):
        return shortest
    return next(i for i, tokens in enumerate(zip(*sequences, strict=False)) if len(set(tokens)) > 1)


def _ended(response: list[int], end: int) -> list[int]:
    while response[-2:] == [end, end]:
        response = response[:-1]
    return response if response and response[-1] == end else [*response, end]


def _text_spans(prompt: str, turns: Messages) -> list[Span]:
    spans, at = [], len(prompt)
    for turn in turns:
        if turn["role"] == "assistant":
            spans.append((at, at + len(turn["content"])))
        at += len(turn["content"])
    return spans
