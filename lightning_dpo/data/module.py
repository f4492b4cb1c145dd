"""PreferenceDataModule: sources of preference pairs -> ragged batches."""

from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning as L
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from lightning_dpo.batch import PairBatch
from lightning_dpo.data.chat import template_text
from lightning_dpo.data.columns import RowEncoder
from lightning_dpo.data.formats import COLUMNS, Format, RankedPairs
from lightning_dpo.data.loader import default_workers, loader
from lightning_dpo.data.sampler import EpochSampler
from lightning_dpo.data.sets import PairSet, split_by_prompt
from lightning_dpo.data.sources import Source, sources
from lightning_dpo.data.store import CACHE_DIR, TokenisedSource, TokenStore
from lightning_dpo.data.stream import PairStream, StreamLoader
from lightning_dpo.data.tokenize import PairTokenizer
from lightning_dpo.errors import DataError
from lightning_dpo.models import load_tokenizer
from lightning_dpo.signatures import check_arguments


class PreferenceDataModule(L.LightningDataModule):
    """Tokenised preference pairs for training and validation.

    Args:
        tokenizer: a tokenizer, or the folder or hub id of one.
        train: a JSONL, JSON or Parquet file, a folder saved by `datasets`, or a hub id; or a list of those and of
            `{path, weight, subset, split, revision}`, where weight is the passes over that source per epoch.
        val: a source like `train`; the share of distinct prompts that is held out (a prompt is never on both sides);
            several named sources `{name: source}`, which log `val/<name>/...`; or None.
        batch_size: pairs per micro-batch and rank, at most.
        max_tokens: prompt, chosen and rejected tokens per micro-batch and rank, at most; None: no limit.
        max_length: longest prompt + response, tokens. A longer response is cut on the right; a pair whose prompt alone
            fills it is dropped and counted. None: no limit.
        max_prompt_length: longest prompt, tokens; a longer one is cut on the left, behind the system message.
        turns: which assistant turns of a response of several turns are trained.
        ranked: which pairs a ranked list of responses gives.
        columns: names of the fields prompt, chosen, rejected, responses, ranks, scores; None for a field to ignore.
        weight_column, margin_column: fields with a number per row, for the loss.
        subset, split, revision: of hub data sets in `train` that don't name their own; validation names its own.
        streaming: tokenise while training and keep nothing, for sets larger than the disk.
        on_bad_row: stop at rows that are no preference pair, or drop and count them.
        shuffle: a new order each epoch, a function of seed and epoch.
        num_workers: processes that prepare batches; None: two where there is a GPU, else none.
        num_proc: processes that tokenise.
        chat_template: Jinja text, or a file of it; replaces the tokenizer's own.
        date: the day (YYYY-MM-DD) that a chat template prints which asks for today's.
        cache_dir: where tokenised sources are kept, found by content.

    After `setup`: `train_pairs` and `val_sets` by name, each a PairSet (with `streaming` there is no `train_pairs`).

    Errors: DataError names the file, line and field of a row that is not a preference pair.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | str | Path,
        train: str | Path | list,
        val: str | Path | Annotated[float, "(0, 1)"] | list | dict | None = None,
        batch_size: Annotated[int, "[1, inf)"] = 8,
        max_tokens: Annotated[int, "[3, inf)"] | None = None,
        max_length: Annotated[int, "[2, inf)"] | None = None,
        max_prompt_length: Annotated[int, "[1, inf)"] | None = None,
        turns: Literal["last", "all"] = "last",
        ranked: RankedPairs = "all",
        columns: dict[str, str | None] | None = None,
        weight_column: str | None = None,
        margin_column: str | None = None,
        subset: str | None = None,
        split: str | None = None,
        revision: str | None = None,
        streaming: bool = False,
        on_bad_row: Literal["stop", "drop"] = "stop",
        shuffle: bool = True,
        num_workers: Annotated[int, "[0, inf)"] | None = None,
        num_proc: Annotated[int, "[1, inf)"] = 1,
        chat_template: str | None = None,
        date: str | None = None,
        cache_dir: str | Path = CACHE_DIR,
        seed: int = 0,
    ):
        super().__init__()
        words = {"val": val, "turns": turns, "ranked": ranked, "on_bad_row": on_bad_row}
        check_arguments(PreferenceDataModule, words, given_later=True)
        self.tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
        if chat_template is not None:
            self.tokenizer.chat_template = template_text(chat_template)
        self.encoder = PairTokenizer(self.tokenizer, max_length, max_prompt_length, turns, date)
        self.format = Format(_columns(columns or {}), weight_column, margin_column, ranked)
        self.store, self.num_proc, self.stop_at_bad = TokenStore(cache_dir), num_proc, on_bad_row == "stop"
        self.train, self.val, self.streaming = train, val, streaming
        self.hub = {"subset": subset, "split": split, "revision": revision}
        self.batch_size, self.max_tokens, self.shuffle = batch_size, max_tokens, shuffle
        self.num_workers, self.seed = (default_workers() if num_workers is None else num_workers), seed
        self.train_pairs: PairSet | None = None
        self.val_sets: dict[str, PairSet] = {}
        self._epoch = self._batches = self._rows_used = 0
        self.stream_counts: Counter = Counter()
        """What became of the rows of a stream that training has read so far."""
        if streaming and isinstance(val, float):
            raise DataError(
                f"data.val={val} with data.streaming=true: a stream cannot be split by prompt; name a source"
            )
        if streaming and max_tokens:
            raise DataError(
                f"data.max_tokens={max_tokens} with data.streaming=true: lengths are known only as a stream is read; "
                "type data.max_tokens=null and a data.batch_size that fits"
            )
        if streaming and (num_workers or 0) > 1:
            raise DataError(
                f"data.num_workers={num_workers} with data.streaming=true: a stream is read by one; type 0 or 1"
            )

    @cached_property
    def sources(self) -> list[Source]:
        return sources(self.train, "data.train", **self.hub)

    def setup(self, stage: str | None = None) -> None:
        if self.train_pairs is not None or self.val_sets:
            return
        train = [] if self.streaming else [self._stored(source) for source in self.sources]
        if isinstance(self.val, float):
            _not_empty(PairSet(train), f"data.train={self.train}")
            self.train_pairs, val = split_by_prompt(train, self.val)
            self.val_sets = {"val": val}
            return
        named = self.val if isinstance(self.val, Mapping) and "path" not in self.val else {"": self.val}
        for name, given in named.items():
            if given is not None:
                held_out = sources([given] if isinstance(given, Mapping) else given, f"data.val{name and '.'}{name}")
                if weighted := [source.path for source in held_out if source.weight != 1]:
                    raise DataError(f"data.val: the weight of {weighted[0]} would be ignored; each pair counts once")
                parts = [self._stored(source) for source in held_out]
                self.val_sets[f"val/{name}" if name else "val"] = _not_empty(PairSet(parts), f"data.val={given}")
        if not self.streaming:
            self.train_pairs = _not_empty(PairSet(train), f"data.train={self.train}")

    def _stored(self, source: Source) -> TokenisedSource:
        return self.store.get(source, RowEncoder(self.format, self.encoder), self.num_proc, self.stop_at_bad)

    def sets(self) -> dict[str, PairSet]:
        """The sets by name: `train`, and `val` or `val/<name>`."""
        train = {} if self.train_pairs is None else {"train": self.train_pairs}
        return {**train, **self.val_sets}

    def pairs(self) -> dict[str, PairBatch]:
        """All pairs of each source, by set and path: what a reference is computed for."""
        named = [
            (f"{name}, {part.source.path}", part)
            for name, pairs in self.sets().items()
            for part in pairs.parts
            if len(part)
        ]
        return {name: part.pairs for name, part in {id(part): (name, part) for name, part in reversed(named)}.values()}

    @property
    def stop_ids(self) -> list[int]:
        """Token ids at which a completion ends: where responses do, and EOS."""
        ends = {i for pairs in self.sets().values() for part in pairs.parts for i in part.manifest["ends"]}
        return sorted(ends | {self.encoder.tokenizer.eos_token_id})

    def train_dataloader(self) -> DataLoader:
        if self.streaming:
            stream = PairStream(
                self.sources, self.format, self.encoder, self.batch_size, self.seed, self.shuffle, self.stop_at_bad
            )
            return StreamLoader(stream, min(self.num_workers, 1), self._epoch, self._rows_used)
        assert self.train_pairs is not None, "call setup() first"
        weights = [source.weight for source in self.sources]
        order = EpochSampler(self.train_pairs.sizes, weights, self.seed, self.shuffle)
        order.set_epoch(self._epoch)
        if self.max_tokens and (parts := [weight for weight in weights if weight % 1]):
            raise DataError(
                f"data.max_tokens={self.max_tokens} with a weight of {parts[0]} in data.train: batches are settled "
                "once, and half a source is another half each epoch; give whole weights"
            )
        return self._loader(self.train_pairs, order, self._batches)

    def val_dataloader(self) -> list[DataLoader]:
        return [
            self._loader(pairs, EpochSampler(pairs.sizes, [1.0] * len(pairs.sizes), seed=0, shuffle=False))
            for pairs in self.val_sets.values()
        ]

    def _loader(self, pairs: PairSet, order: EpochSampler, taken: int = 0) -> DataLoader:
        return loader(pairs, order, self.batch_size, self.max_tokens, self.num_workers, taken)

    def on_after_batch_transfer(self, batch: PairBatch, dataloader_idx: int) -> PairBatch:
        if self.trainer is not None and self.trainer.training:
            self.used(batch, self.trainer.current_epoch)
        return batch

    def used(self, batch: PairBatch, epoch: int) -> None:
        """Note that training has taken this batch: `state_dict` is the position after it."""
        self._batches = self._batches + 1 if epoch == self._epoch else 1
        self._epoch, self._rows_used = epoch, batch.rows_used
        self.stream_counts.update(batch.rows_read)

    def content(self) -> dict[str, list[str]]:
        """Names of each set's data by content, in their order: equal lists are equal pairs. A stream has none."""
        return {name: [part.folder.name for part in pairs.parts] for name, pairs in self.sets().items()}

    def state_dict(self) -> dict[str, Any]:
        """The position in the order of the data: epoch, batches taken in it, and rows of a stream."""
        counts = dict(self.stream_counts)
        if self._batches and self.trainer is not None and self.trainer.is_last_batch:
            return {"epoch": self._epoch + 1, "batches": 0, "rows_used": 0, "stream_counts": counts}
        position = {"epoch": self._epoch, "batches": self._batches, "rows_used": self._rows_used}
        return {**position, "stream_counts": counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The next training loader begins at this position."""
        self._epoch, self._batches = state_dict["epoch"], state_dict["batches"]
        self._rows_used, self.stream_counts = state_dict["rows_used"], Counter(state_dict["stream_counts"])


def _columns(given: Mapping[str, str | None]) -> dict[str, str | None]:
    if unknown := set(given) - set(COLUMNS):
        raise DataError(f"data.columns: unknown {', '.join(sorted(unknown))}; allowed: {', '.join(COLUMNS)}")
    return {**COLUMNS, **given}


def _not_empty(pairs: PairSet, key: str) -> PairSet:
    if len(pairs) == 0:
        lost = {name: n for part in pairs.parts for name, n in part.manifest["dropped"].items()}
        raise DataError(f"{key}: no pair is left of the rows; dropped: {lost}")
    return pairs
