"""Rows -> token ids, by one rule.

1. Prompt and response are encoded together, because a tokenizer may merge characters across their border.
2. Prompt, prompt + chosen and prompt + rejected are split at their longest common token prefix. Both responses are thus
   conditioned on the same tokens. A token merged across the border belongs to the response.
3. Each response that is not truncated ends with exactly one end token: the chat template's end of turn (anything the
   template prints after it is removed), or EOS if there is no template or it ends turns with no single token. A
   truncated response has none.
4. A tokenizer that adds a BOS gives exactly one, whether or not the template prints it too.
5. In a response of several turns, the assistant's last turn is trained, or all of them (`turns`); the rest is context.
6. Prompts are truncated first, on the left (`max_prompt_length`, in truncate.py), then responses on the right
   (`max_length`).
"""

import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from lightning_dpo.data.chat import Chat, OnLoss, Side, Turns
from lightning_dpo.data.rows import BadRow, Dropped, Messages, Note, Response, Row, text_of
from lightning_dpo.data.truncate import PromptEncoder, truncate_prompt
from lightning_dpo.errors import DataError

Span = tuple[int, int]
FLAGS = (
    *("merged_border", "special_token_in_text", "double_bos", "cut_prompt", "cut_chosen", "cut_rejected", "no_space"),
    "prompt_repeated",
)
"""Properties of a pair that reports count, one bit each, in this order."""


class Encoded(NamedTuple):
    """Token ids of one pair after truncation.

    chosen_trained, rejected_trained: whether each response token is trained; None: all are.
    flags: bits in the order of FLAGS. tokens_cut: tokens removed from the prompt and both responses.
    ends: the tokens that end the responses. notes: what the data page counts, of the row and of its rendering.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    chosen_trained: list[bool] | None
    rejected_trained: list[bool] | None
    flags: int
    tokens_cut: int
    ends: tuple[int, int]
    notes: tuple[Note, ...] = ()


class PairTokenizer:
    """Encodes rows by the rule of this module. Its arguments are those of PreferenceDataModule."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None = None,
        max_prompt_length: int | None = None,
        turns: Turns = "last",
        date: str | None = None,
        on_template_loss: OnLoss = "stop",
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ):
        self.tokenizer: Any = tokenizer  # the base class does not declare the attributes of fast tokenizers
        self.max_length, self.max_prompt_length = max_length, max_prompt_length
        self.eos: int = self.tokenizer.eos_token_id
        if self.eos is None:
            raise DataError("the tokenizer has no EOS token, so responses cannot end")
        if not tokenizer.is_fast:
            raise DataError("the tokenizer is slow and has no character offsets; save it with a tokenizer.json")
        self.chat = Chat(tokenizer, date, turns, on_template_loss, chat_template_kwargs)

    def encode(self, rows: Sequence[Row]) -> list[Encoded | Dropped | BadRow]:
        """The tokens of each row, or the reason why it has none, in order.

        Dropped: `prompt_too_long` (the prompt fills max_length, or the part that must stay exceeds max_prompt_length),
        `no_prompt_token` (no token precedes the responses), `identical_tokens` (of different texts),
        `identical_after_cut`, `nothing_trained` (all trained tokens were truncated).
        """
        rendered = [self.rendered(row) for row in rows]
        good = [texts for texts in rendered if not isinstance(texts, BadRow)]
        ids = iter(self.ids([side.text for texts in good for side in texts]))
        answers: list[Encoded | Dropped | BadRow] = []
        for row, texts in zip(rows, rendered, strict=True):
            if isinstance(texts, BadRow):
                answers.append(texts)
                continue
            found = dict.fromkeys(note for side in (row, *texts[1:]) for note in side.notes)
            encoded = [next(ids) for _ in texts]
            if self._unknown is not None and any(self._unknown in side for side in encoded):
                found[("unknown", "")] = None
            notes = tuple(found)
            try:
                answers.append(self._pair(row, texts, encoded, notes))
            except Dropped as reason:
                reason.notes = notes
                answers.append(reason)
            except BadRow as reason:
                answers.append(reason)
        return answers

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids, with exactly one BOS if the tokenizer adds one."""
        encoded = self.backend().encode_batch_fast(texts, add_special_tokens=False)
        return [self._with_bos(e.ids) for e in encoded]

    def ids_and_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        """The same ids with their character spans; the span of an added BOS is empty."""
        encoded = self.backend().encode(text, add_special_tokens=False)
        ids = self._with_bos(encoded.ids)
        return ids, [(0, 0)] * (len(ids) - len(encoded.ids)) + encoded.offsets

    def backend(self) -> Tokenizer:
        """The fast tokenizer, without the padding and truncation settings that earlier calls left in it."""
        backend: Tokenizer = self.tokenizer.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        return backend

    def rendered(self, row: Row) -> tuple[Side, Side, Side] | BadRow:
        """Prompt, prompt + chosen and prompt + rejected as text, or why the chat template gives none."""
        try:
            prompt = row.prompt if isinstance(row.prompt, str) else self.chat.prompt(row.prompt, row.options)
            return Side(prompt, self.eos), self._side(row, row.chosen, prompt), self._side(row, row.rejected, prompt)
        except BadRow as reason:
            return reason

    def _side(self, row: Row, response: Response, prompt: str) -> Side:
        if not isinstance(row.prompt, str):
            return self.chat.side(row, response, prompt)
        if isinstance(response, str):
            return Side(prompt + response, self.eos)
        spans = _text_spans(prompt, response)
        return Side(
            prompt + "".join(map(text_of, response)), self.eos, spans if self.chat.turns == "all" else spans[-1:]
        )

    def _pair(self, row: Row, texts: tuple[Side, Side, Side], ids: list[list[int]], notes: tuple[Note, ...]) -> Encoded:
        full_prompt = ids[0]
        split = len(os.path.commonprefix(ids))
        encoder = PromptEncoder(partial(self.chat.prompt, options=row.options), self.ids_and_offsets, self.bos)
        merged = len(full_prompt) - split
        prompt = truncate_prompt(encoder, row, full_prompt[:split], merged, self.max_prompt_length)
        if not prompt:
            raise Dropped("no_prompt_token")
        room = None if self.max_length is None else self.max_length - len(prompt)
        if room is not None and room <= 0:
            raise Dropped("prompt_too_long")
        full = [_ended(side[split:], text.end) for side, text in zip(ids[1:], texts[1:], strict=True)]
        chosen, rejected = (side[:room] for side in full)
        masks = [self._trained(side, split, len(r)) for side, r in ((texts[1], chosen), (texts[2], rejected))]
        if chosen == rejected and masks[0] == masks[1]:
            raise Dropped("identical_tokens" if full[0] == full[1] else "identical_after_cut")
        if any(mask is not None and not any(mask) for mask in masks):
            raise Dropped("nothing_trained")
        flags = {
            "merged_border": merged > 0 and all(text.text.startswith(texts[0].text) for text in texts[1:]),
            "special_token_in_text": self._holds_special(row),
            "double_bos": bool(self.bos) and full_prompt[len(self.bos) : 2 * len(self.bos)] == self.bos,
            "cut_prompt": len(prompt) < split,
            "cut_chosen": len(chosen) < len(full[0]),
            "cut_rejected": len(rejected) < len(full[1]),
            "no_space": row.runs_together,
            "prompt_repeated": row.repeats_prompt,
        }
        bits = sum(flags[name] << i for i, name in enumerate(FLAGS))
        cut = split - len(prompt) + len(full[0]) - len(chosen) + len(full[1]) - len(rejected)
        return Encoded(prompt, chosen, rejected, masks[0], masks[1], bits, cut, (texts[1].end, texts[2].end), notes)

    def _trained(self, side: Side, split: int, length: int) -> list[bool] | None:
        """Whether each of the first `length` response tokens is trained: whether it overlaps a trained span."""
        if side.spans is None:
            return None
        _, offsets = self.ids_and_offsets(side.text)
        mask = [any(a < end and b > start for start, end in side.spans) for a, b in offsets[split:]]
        return (mask + [True] * (length - len(mask)))[:length]  # an end token may have been added or removed

    @cached_property
    def bos(self) -> list[int]:
        """Token ids that the tokenizer adds before a text: one BOS, or none."""
        plain = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        full = self.tokenizer("a")["input_ids"]
        starts = [i for i in range(len(full)) if full[i : i + len(plain)] == plain]
        return full[: starts[0]] if starts else []

    def _with_bos(self, ids: list[int]) -> list[int]:
        return ids if ids[: len(self.bos)] == self.bos else self.bos + ids

    @cached_property
    def _unknown(self) -> int | None:
        """The token of what the vocabulary lacks, unless it has another use too, as GPT-2's has."""
        token = self.tokenizer.unk_token_id
        return None if token in (self.eos, self.tokenizer.bos_token_id, self.tokenizer.pad_token_id) else token

    @cached_property
    def _special(self) -> re.Pattern | None:
        added = [t.content for t in self.tokenizer.added_tokens_decoder.values() if t.special]
        return re.compile("|".join(map(re.escape, added))) if added else None

    def _holds_special(self, row: Row) -> bool:
        """Whether a text contains the spelling of a special token, which is encoded as that token."""
        if self._special is None:
            return False
        parts = (row.prompt, row.chosen, row.rejected)
        texts = [p if isinstance(p, str) else "\n".join(map(text_of, p)) for p in parts]
        return any(self._special.search(text) for text in texts)


def _ended(response: list[int], end: int) -> list[int]:
    while response[-2:] == [end, end]:
        response = response[:-1]
    return response if response and response[-1] == end else [*response, end]


def _text_spans(prompt: str, turns: Messages) -> list[Span]:
    borders = accumulate((len(turn["content"]) for turn in turns), initial=len(prompt))
    return [span for turn, span in zip(turns, pairwise(borders), strict=True) if turn["role"] == "assistant"]
