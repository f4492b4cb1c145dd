"""Chunks of records -> columns of tokens, in one process or several, a few chunks at a time."""

import hashlib
import json
import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from lightning_dpo.data.formats import Format, parsed
from lightning_dpo.data.rows import BadRow, Dropped, Note, Row
from lightning_dpo.data.sources import Chunk
from lightning_dpo.data.template_loss import LOSS
from lightning_dpo.data.tokenize import Encoded, PairTokenizer

SIDES = ("prompt", "chosen", "rejected")
DTYPES = {
    **dict.fromkeys(SIDES, np.int32),
    **dict.fromkeys(("chosen_trained", "rejected_trained"), np.uint8),
    **{f"{side}_lengths": np.int64 for side in SIDES},
    **{f"{side}_hash": np.uint64 for side in SIDES},
    "number": np.int64,
    "weight": np.float64,
    "margin": np.float64,
    "flags": np.uint8,
}
"""Columns of a token store. Token ids and trained masks have one value per token, the others one per pair."""

SHOWN = 20
"""Bad rows that are kept as examples."""


class Bad(NamedTuple):
    """A bad row: its number in the source, the field, the kind of mistake and the message."""

    number: int
    field: str
    kind: str
    message: str


class EncodedChunk(NamedTuple):
    """An encoded chunk: columns of the pairs that can be trained, and counts of the others.

    records: rows read. counts: dropped pairs by reason. ends: token ids that end responses. masked: whether some
    response tokens are not trained. bad: the first bad rows, template losses before others. bad_kinds: counts of all of
    them. notes: what the data page counts, by rows.
    """

    columns: dict[str, np.ndarray]
    records: int
    counts: Counter
    tokens_cut: int
    ends: set[int]
    masked: bool
    bad: list[Bad]
    bad_kinds: Counter
    notes: Counter


class RowEncoder(NamedTuple):
    """Parses and encodes chunks. Without `encode` it only parses them, which counts the bad rows."""

    format: Format
    tokenizer: PairTokenizer

    def __call__(self, chunk: Chunk, encode: bool = True) -> EncodedChunk:
        items = list(parsed(chunk, self.format))
        rows = [row for _, row in items if isinstance(row, Row)]
        answers = iter(self.tokenizer.encode(rows) if encode else map(self.tokenizer.rendered, rows))
        counts: Counter = Counter()
        bad: list[Bad] = []
        kept: list[tuple[int, Row, Encoded]] = []
        notes: set[tuple[int, Note]] = set()
        for number, row in items:
            answer = next(answers) if isinstance(row, Row) else row
            notes.update((number, note) for note in getattr(answer, "notes", ()))
            if isinstance(row, Row) and isinstance(answer, Encoded):
                kept.append((number, row, answer))
            elif isinstance(answer, Dropped):
                counts[str(answer)] += 1
            elif isinstance(answer, BadRow):
                bad.append(Bad(number, answer.field, answer.kind, str(answer)))
        masked = any(e.chosen_trained is not None or e.rejected_trained is not None for *_, e in kept)
        return EncodedChunk(
            columns=_columns(kept),
            records=len(chunk.items),
            counts=counts,
            tokens_cut=sum(e.tokens_cut for *_, e in kept),
            ends={end for *_, e in kept for end in e.ends},
            masked=masked,
            bad=sorted(bad, key=lambda b: (b.kind != LOSS, b.number))[:SHOWN],
            bad_kinds=Counter(b.kind for b in bad),
            notes=Counter(note for _, note in notes),
        )


def _columns(kept: list[tuple[int, Row, Encoded]]) -> dict[str, np.ndarray]:
    pairs = [e for *_, e in kept]
    values: dict[str, Any] = {}
    for side in SIDES:
        values[side] = [token for e in pairs for token in getattr(e, side)]
        values[f"{side}_lengths"] = [len(getattr(e, side)) for e in pairs]
        values[f"{side}_hash"] = [content_hash(getattr(row, side)) for _, row, _ in kept]
    for i, (_, row, _) in enumerate(kept):
        if row.options:  # other tools make another prompt
            values["prompt_hash"][i] = content_hash([row.prompt, dict(row.options)])
    for side in ("chosen", "rejected"):
        masks = (getattr(e, f"{side}_trained") or [True] * len(getattr(e, side)) for e in pairs)
        values[f"{side}_trained"] = [trained for mask in masks for trained in mask]
    values["number"] = [number for number, *_ in kept]
    values["weight"] = [row.weight for _, row, _ in kept]
    values["margin"] = [float("nan") if row.margin is None else row.margin for _, row, _ in kept]
    values["flags"] = [e.flags for e in pairs]
    return {name: np.array(values[name], dtype=dtype) for name, dtype in DTYPES.items()}


def content_hash(content: Any) -> int:
    """64 bits of a text or of messages, equal for equal content on every machine."""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=True)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def encoded_chunks(
    encoder: RowEncoder, chunks: Iterable[Chunk], num_proc: int, stop_at_bad: bool
) -> Iterator[EncodedChunk]:
    """Each chunk encoded, in order. With `stop_at_bad`, chunks after the first bad row are only parsed."""
    encode = True
    for encoded in _mapped(encoder, ((chunk, encode) for chunk in chunks), num_proc):
        encode = encode and not (stop_at_bad and encoded.bad)
        yield encoded


_encoder: Callable


def _start_worker(encoder: RowEncoder) -> None:
    global _encoder
    _encoder = encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each worker uses one core


def _run(task: tuple) -> EncodedChunk:
    return _encoder(*task)


def _mapped(encoder: RowEncoder, tasks: Iterable[tuple], num_proc: int) -> Iterator[EncodedChunk]:
    if num_proc == 1:
        yield from (encoder(*task) for task in tasks)
        return
    # Forked, so that the tokenizer is not sent with each chunk.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(num_proc, context, _start_worker, (encoder,)) as pool:
        waiting: deque = deque()
        for task in tasks:
            waiting.append(pool.submit(_run, task))
            if len(waiting) > 2 * num_proc:  # the pool's own map would read the whole source at once
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
