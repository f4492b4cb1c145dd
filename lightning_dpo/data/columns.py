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
from lightning_dpo.data.rows import BadRow, Dropped, Row
from lightning_dpo.data.sources import Chunk
from lightning_dpo.data.tokenize import Encoded, PairTokenizer

DTYPES = {
    "prompt": np.int32,
    "chosen": np.int32,
    "rejected": np.int32,
    "chosen_trained": np.uint8,
    "rejected_trained": np.uint8,
    "prompt_lengths": np.int64,
    "chosen_lengths": np.int64,
    "rejected_lengths": np.int64,
    "prompt_hash": np.uint64,
    "chosen_hash": np.uint64,
    "rejected_hash": np.uint64,
    "number": np.int64,
    "weight": np.float64,
    "margin": np.float64,
    "flags": np.uint8,
}
"""Columns of a token store. The first five have one value per token, the others one per pair."""


class Bad(NamedTuple):
    """A bad row: its number in the source, the field, the kind of mistake and the message."""

    number: int
    field: str
    kind: str
    message: str


class EncodedChunk(NamedTuple):
    """What became of a chunk: columns of the pairs that can be trained, and counts of the others.

    records: rows read. counts: pairs dropped by reason. ends: token ids that end responses. masked: whether some
    response tokens are context. bad: the first bad rows; bad_kinds counts them all.
    """

    columns: dict[str, np.ndarray]
    records: int
    counts: Counter
    tokens_cut: int
    ends: set[int]
    masked: bool
    bad: list[Bad]
    bad_kinds: Counter


class RowEncoder(NamedTuple):
    """How chunks are encoded; called with (chunk, whether to encode or only to parse)."""

    format: Format
    tokenizer: PairTokenizer

    def __call__(self, chunk: Chunk, encode: bool = True) -> EncodedChunk:
        counts: Counter = Counter()
        bad: list[Bad] = []
        numbers, rows = [], []
        for number, pair in parsed(chunk, self.format):
            if isinstance(pair, Row):
                numbers.append(number)
                rows.append(pair)
            elif isinstance(pair, Dropped):
                counts[str(pair)] += 1
            else:
                bad.append(Bad(number, pair.field, pair.kind, str(pair)))
        kept: list[tuple[int, Row, Encoded]] = []
        answers = self.tokenizer.encode(rows) if encode else map(self.tokenizer.rendered, rows)
        for number, row, answer in zip(numbers, rows, answers, strict=True):
            if isinstance(answer, Encoded):
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
            ends={self.tokenizer.end_id(row) for row in rows[:1]} | {self.tokenizer.end_id(r) for _, r, _ in kept},
            masked=masked,
            bad=sorted(bad)[:20],
            bad_kinds=Counter(b.kind for b in bad),
        )


def _columns(kept: list[tuple[int, Row, Encoded]]) -> dict[str, np.ndarray]:
    pairs = [e for *_, e in kept]
    values: dict[str, Any] = {
        name: [t for e in pairs for t in getattr(e, name)] for name in ("prompt", "chosen", "rejected")
    }
    for side in ("chosen", "rejected"):
        masks = ((getattr(e, f"{side}_trained"), getattr(e, side)) for e in pairs)
        values[f"{side}_trained"] = [t for mask, ids in masks for t in (mask or [True] * len(ids))]
    for name in ("prompt", "chosen", "rejected"):
        values[f"{name}_lengths"] = [len(getattr(e, name)) for e in pairs]
        values[f"{name}_hash"] = [content_hash(getattr(row, name)) for _, row, _ in kept]
    values["number"] = [number for number, *_ in kept]
    values["weight"] = [row.weight for _, row, _ in kept]
    values["margin"] = [float("nan") if row.margin is None else row.margin for _, row, _ in kept]
    values["flags"] = [e.flags for e in pairs]
    return {name: np.array(values[name], dtype=dtype) for name, dtype in DTYPES.items()}


def content_hash(content: Any) -> int:
    """64 bits of a text or of messages: equal for equal content, the same on every machine."""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=True)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def encoded_chunks(
    work: RowEncoder, chunks: Iterable[Chunk], num_proc: int, stop_at_bad: bool
) -> Iterator[EncodedChunk]:
    """Each chunk encoded, in order. Once a row is bad and `stop_at_bad`, the rest is only parsed: it is counted."""
    encode = True
    for encoded in _mapped(work, ((chunk, encode) for chunk in chunks), num_proc):
        encode = encode and not (stop_at_bad and encoded.bad)
        yield encoded


_work: Callable


def _start_worker(work: RowEncoder) -> None:
    global _work
    _work = work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core each


def _run(task: tuple) -> EncodedChunk:
    return _work(*task)


def _mapped(work: RowEncoder, tasks: Iterable[tuple], num_proc: int) -> Iterator[EncodedChunk]:
    if num_proc == 1:
        yield from (work(*task) for task in tasks)
        return
    # Forked, so that the tokenizer is shared and not sent with each chunk.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(num_proc, context, _start_worker, (work,)) as pool:
        waiting: deque = deque()
        for task in tasks:
            waiting.append(pool.submit(_run, task))
            if len(waiting) > 2 * num_proc:  # a pool's own map would read the whole source at once
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
