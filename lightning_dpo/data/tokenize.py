"""Rows -> token ids, by one rule.

1. Prompt and response are encoded together, because a tokenizer may merge characters across their border.
2. Prompt, prompt + chosen and prompt + rejected are split at their longest common token prefix: the same split for both
   sides, so both responses are scored given the same tokens. A token merged over the border belongs to the response.
3. Each response that is not cut ends with exactly one end token: the chat template's own end of turn (what the
   template prints after it is left out), or EOS where there is no template or it prints no special token. A cut
   response has none.
4. A tokenizer that wants a BOS gets exactly one, whether the template prints it or not.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from lightning_dpo.batch import PairBatch, Ragged
from lightning_dpo.data.rows import Row
from lightning_dpo.errors import DataError

ROWS_AT_ONCE = 1000


class EndOfTurn(NamedTuple):
    """What a chat template prints after the last assistant message: `printed`, of which `kept` stays."""

    printed: str
    kept: str
    token_id: int | None


class Encoded(NamedTuple):
    """Token ids of one pair, uncut."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


class PairTokenizer:
    """Encodes rows by the rule of this module.

    Args:
        tokenizer: with a chat template if rows are chats.
        max_length: longest prompt + response in tokens; longer responses are cut on the right. None: no limit.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None):
        self.tokenizer = tokenizer
        self.max_length = max_length
        if tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no EOS token, so a response could never end")

    def encode(self, rows: Sequence[Row]) -> tuple[PairBatch, dict[str, int]]:
        """The pairs that can be trained, and how many rows were dropped by reason or cut.

        Counts: `prompt_too_long` (the prompt alone fills max_length), `no_prompt_token` (nothing precedes the first
        response token), `cut_responses` (kept, without their end).
        """
        counts = {"prompt_too_long": 0, "no_prompt_token": 0, "cut_responses": 0}
        prompts, chosen, rejected, index = [], [], [], []
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            for i, pair in enumerate(self._encode_part(part), start):
                room = max(map(len, pair)) if self.max_length is None else self.max_length - len(pair.prompt)
                if not pair.prompt:
                    counts["no_prompt_token"] += 1
                elif room <= 0:
                    counts["prompt_too_long"] += 1
                else:
                    counts["cut_responses"] += (len(pair.chosen) > room) + (len(pair.rejected) > room)
                    prompts.append(pair.prompt)
                    chosen.append(pair.chosen[:room])
                    rejected.append(pair.rejected[:room])
                    index.append(i)
        if not index:
            raise DataError(f"no row is left to train on: {counts}; raise data.max_length={self.max_length}")
        sides = (Ragged.from_rows(side, dtype=torch.int32) for side in (prompts, chosen, rejected))
        return PairBatch(*sides, index=torch.tensor(index)), counts

    def _encode_part(self, rows: Sequence[Row]) -> list[Encoded]:
        texts = [text for row in rows for text in self.texts(row)]
        encoded = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        ids = [self._with_bos(sequence) for sequence in encoded]
        return [self._split(*pair) for pair in zip(rows, ids[::3], ids[1::3], ids[2::3], strict=True)]

    def _split(self, row: Row, prompt: list[int], chosen: list[int], rejected: list[int]) -> Encoded:
        split = common_prefix([prompt, chosen, rejected])
        end = self.end_id(row)
        return Encoded(prompt[:split], _ended(chosen[split:], end), _ended(rejected[split:], end))

    def texts(self, row: Row) -> tuple[str, str, str]:
        """Prompt, prompt + chosen and prompt + rejected as the model sees them, the end of turn included."""
        if isinstance(row.prompt, str):
            return row.prompt, row.prompt + row.chosen, row.prompt + row.rejected
        sides = []
        for content in (row.chosen, row.rejected):
            text = self._render([*row.prompt, {"role": "assistant", "content": content}], row.where)
            if not text.endswith(self.end_of_turn.printed):
                raise DataError(
                    f"{row.where}: the chat template ends this response with {text[-20:]!r}, "
                    f"but others with {self.end_of_turn.printed!r}"
                )
            sides.append(text.removesuffix(self.end_of_turn.printed) + self.end_of_turn.kept)
        return self._render(row.prompt, row.where, add_generation_prompt=True), *sides

    def end_id(self, row: Row) -> int:
        """The token that ends an uncut response of this row."""
        template_end = None if isinstance(row.prompt, str) else self.end_of_turn.token_id
        return self.tokenizer.eos_token_id if template_end is None else template_end  # type: ignore[return-value]

    @cached_property
    def end_of_turn(self) -> EndOfTurn:
        mark = "RESPONSE"
        text = self._render([{"role": "user", "content": "x"}, {"role": "assistant", "content": mark}], "chat template")
        printed = text[text.rfind(mark) + len(mark) :]
        added = self.tokenizer.added_tokens_decoder.items()
        special = {token.content: i for i, token in added if token.special}
        special[self.tokenizer.eos_token] = self.tokenizer.eos_token_id  # type: ignore[index]
        found = [(printed.find(content), -len(content), content) for content in special if content in printed]
        if not found:
            return EndOfTurn(printed, "", None)
        at, _, content = min(found)
        return EndOfTurn(printed, printed[: at + len(content)], special[content])

    def _render(self, messages: list, where: str, **options) -> str:
        if not self.tokenizer.chat_template:
            raise DataError(
                f"{where}: the row is a chat, and the tokenizer has no chat template; "
                "give one by data.chat_template=FILE (Jinja)"
            )
        return self.tokenizer.apply_chat_template(messages, tokenize=False, **options)  # type: ignore[return-value]

    @cached_property
    def _bos(self) -> list[int]:
        """What the tokenizer puts before a text by itself: one BOS, or nothing."""
        plain = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        full = self.tokenizer("a")["input_ids"]
        starts = [i for i in range(len(full)) if full[i : i + len(plain)] == plain]
        return full[: starts[0]] if starts else []

    def _with_bos(self, ids: list[int]) -> list[int]:
        return ids if ids[: len(self._bos)] == self._bos else self._bos + ids


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the longest common prefix.

    >>> common_prefix([[1, 2, 3], [1, 2, 4], [1, 2, 3, 5]])
    2
    """
    for i, tokens in enumerate(zip(*sequences, strict=False)):
        if len(set(tokens)) > 1:
            return i
    return min(map(len, sequences))


def _ended(response: list[int], end: int) -> list[int]:
    return response if response and response[-1] == end else [*response, end]
