"""Streams, for sources larger than the disk: rows are tokenised and batched during training, and nothing is kept."""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from lightning_dpo.batch import PairBatch
from lightning_dpo.data.columns import SIDES, content_hash
from lightning_dpo.data.formats import Format, parsed
from lightning_dpo.data.loader import leave_signals_to_the_run
from lightning_dpo.data.rows import BadRow, Dropped, Row, located
from lightning_dpo.data.sources import Chunk, Source
from lightning_dpo.data.template_loss import LOSS
from lightning_dpo.data.tokenize import Encoded, PairTokenizer
from lightning_dpo.errors import DataError
from lightning_dpo.ragged import Ragged

Item = Row | Dropped | BadRow

BUFFER = 10_000
"""Rows among which a stream is shuffled."""
AT_ONCE = 256
"""Rows tokenised at once."""


def check_streaming(val: Any, max_tokens: int | None, num_workers: int) -> None:
    """Errors: DataError for options that need all rows at once, or several readers."""
    if isinstance(val, float):
        raise DataError(f"data.val={val} with data.streaming=true: a stream cannot be split by prompt; name a file")
    if max_tokens:
        raise DataError(
            f"data.max_tokens={max_tokens} with data.streaming=true: lengths are known only as a stream is read; "
            "type data.max_tokens=null and a data.batch_size that fits"
        )
    if num_workers > 1:
        raise DataError(
            f"data.num_workers={num_workers} with data.streaming=true: one process reads a stream; type 0 or 1"
        )


class PairStream(IterableDataset):
    """Batches from a stream of rows, the same for the same seed and epoch.

    Each row comes from a random source that has rows left, with probability proportional to its weight. A weight of 2.5
    reads its source two and a half times per epoch, the half chosen by a hash of row and epoch. `shuffle` draws from a
    buffer of BUFFER rows.

    The first `skip_rows` rows, which an earlier run used in this epoch, are neither tokenised nor counted again.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        format: Format,
        encoder: PairTokenizer,
        batch_size: int,
        seed: int,
        shuffle: bool,
        stop_at_bad: bool,
    ):
        self.sources, self.format, self.encoder = sources, format, encoder
        self.batch_size, self.seed, self.shuffle, self.stop_at_bad = batch_size, seed, shuffle, stop_at_bad
        self.epoch = self.skip_rows = 0
        self.counts: Counter = Counter()

    def __iter__(self) -> Iterator[PairBatch]:
        """Batches. The last of an epoch may be smaller. `rows_used` of each is the stream's position after it."""
        rows = self._order()
        for _ in islice(rows, self.skip_rows):
            pass
        self.counts = Counter()
        held = None  # the last batch also counts the rows after it
        for batch in self._batches(rows, self.skip_rows):
            if held is not None:
                yield held
            held = batch
        if held is not None:
            held.rows_read = dict(Counter(held.rows_read) + self.counts)
            yield held
        elif not self.skip_rows:
            raise DataError(f"data.train: no usable pairs in the stream: {dict(self.counts)}")

    def _batches(self, rows: Iterator[tuple[str, Item]], used: int) -> Iterator[PairBatch]:
        waiting: list[tuple[int, Encoded, Row]] = []
        while part := list(islice(rows, AT_ONCE)):
            for offset, (row, answer) in enumerate(self._encoded(part), start=used + 1):
                if isinstance(answer, Encoded):
                    waiting.append((offset, answer, row))
                if len(waiting) == self.batch_size:
                    yield self._batch(waiting)
                    waiting = []
            used += len(part)
        if waiting:
            yield self._batch(waiting)

    def _encoded(self, part: list[tuple[str, Item]]) -> Iterator[tuple[Any, Any]]:
        answers = iter(self.encoder.encode([row for _, row in part if isinstance(row, Row)]))
        for where, row in part:
            answer = next(answers) if isinstance(row, Row) else row
            if isinstance(answer, BadRow):
                self._bad(where, answer)
            else:
                self.counts["pairs" if isinstance(answer, Encoded) else str(answer)] += 1
                notes = getattr(answer, "notes", ())
                self.counts.update(" ".join(note).strip() for note in notes if note[0] != "text")
            yield row, answer

    def _batch(self, waiting: list[tuple[int, Encoded, Row]]) -> PairBatch:
        batch = batch_of(waiting, self.format)
        batch.rows_used, batch.rows_read = waiting[-1][0], dict(self.counts)
        batch.ends = frozenset(end for _, encoded, _ in waiting for end in encoded.ends)
        self.counts = Counter()
        return batch

    def _order(self) -> Iterator[tuple[str, Item]]:
        rng = random.Random(f"{self.seed}-{self.epoch}")
        rows = self._mixed(rng)
        if not self.shuffle:
            yield from rows
            return
        buffer = list(islice(rows, BUFFER))
        for row in rows:
            at = rng.randrange(len(buffer))
            yield buffer[at]
            buffer[at] = row
        rng.shuffle(buffer)
        yield from buffer

    def _mixed(self, rng: random.Random) -> Iterator[tuple[str, Item]]:
        live = [(source.weight, self._passes(source)) for source in self.sources]
        while live:
            at = rng.choices(range(len(live)), [weight for weight, _ in live])[0] if len(live) > 1 else 0
            if (row := next(live[at][1], None)) is None:
                del live[at]
            else:
                yield row

    def _passes(self, source: Source) -> Iterator[tuple[str, Item]]:
        for _ in range(int(source.weight)):
            yield from self._read(source, 1.0)
        if part := source.weight % 1:
            yield from self._read(source, part)

    def _read(self, source: Source, share: float) -> Iterator[tuple[str, Item]]:
        for chunk in source.chunks(streaming=True):
            for number, pair in parsed(chunk, self.format):
                if share < 1 and content_hash([self.seed, self.epoch, source.path, number]) >= share * 2**64:
                    continue
                if isinstance(pair, BadRow) and self.stop_at_bad:
                    self._bad(source.where(number), pair)
                yield source.where(number), pair

    def _bad(self, where: str, error: BadRow) -> None:
        if self.stop_at_bad or error.kind == LOSS:
            remedy = "" if error.kind == LOSS else "; correct it, or type data.on_bad_row=drop"
            raise DataError(f"{located(where, error.field, str(error))}{remedy}")
        self.counts[error.kind] += 1


def batch_of(numbered: Sequence[tuple[int, Encoded, Row]], format: Format) -> PairBatch:
    """One batch of encoded rows, numbered from 1."""
    encoded = [e for _, e, _ in numbered]
    sides = (Ragged.from_rows([getattr(e, side) for e in encoded], torch.int32) for side in SIDES)
    batch = PairBatch(*sides, index=torch.tensor([number - 1 for number, *_ in numbered]))
    if any(e.chosen_trained or e.rejected_trained for e in encoded):
        chosen = [e.chosen_trained or [True] * len(e.chosen) for e in encoded]
        rejected = [e.rejected_trained or [True] * len(e.rejected) for e in encoded]
        batch.trained = Ragged.from_rows(chosen, torch.uint8), Ragged.from_rows(rejected, torch.uint8)
    if format.weight_column:
        batch.weight = torch.tensor([row.weight for *_, row in numbered], dtype=torch.float64)
    if format.margin_column:
        batch.margin = torch.tensor([row.margin for *_, row in numbered], dtype=torch.float64)
    return batch


def batch_of_records(records: Sequence[Mapping[str, Any]], format: Format, encoder: PairTokenizer) -> PairBatch:
    """One batch of records, whose numbers from 0 are its `index`.

    Errors: DataError for one that is not a preference pair, or that no loss can learn from.
    """
    rows, numbered = list(parsed(Chunk(list(range(1, len(records) + 1)), list(map(dict, records))), format)), []
    answers = iter(encoder.encode([row for _, row in rows if isinstance(row, Row)]))
    for number, row in rows:
        answer = next(answers) if isinstance(row, Row) else row
        if not isinstance(row, Row) or not isinstance(answer, Encoded):
            raise DataError(located(f"row {number}", getattr(answer, "field", ""), str(answer)))
        numbered.append((number, answer, row))
    return batch_of(numbered, format)


class StreamLoader(DataLoader):
    """One iteration is one epoch of a stream. Counted here, because Lightning sets the epoch of samplers only."""

    def __init__(self, stream: PairStream, num_workers: int, epoch: int, skip_rows: int):
        options: dict[str, Any] = {"generator": torch.Generator(), "worker_init_fn": leave_signals_to_the_run}
        super().__init__(stream, batch_size=None, num_workers=num_workers, **options)
        self.stream, self.epoch, self.skip_rows = stream, epoch, skip_rows

    def __iter__(self):
        # Set in this process, which copies the stream to its worker. A worker's own changes do not come back.
        self.stream.epoch, self.stream.skip_rows = self.epoch, self.skip_rows
        self.epoch, self.skip_rows = self.epoch + 1, 0
        return super().__iter__()
