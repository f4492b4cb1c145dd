"""PreferenceDataModule: preference pairs from files, folders or the hub -> ragged batches."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning as L
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from lightning_dpo.batch import PairBatch
from lightning_dpo.data.chat import OnLoss, template_text
from lightning_dpo.data.columns import RowEncoder
from lightning_dpo.data.fields import Format, RankedPairs
from lightning_dpo.data.loader import check_trainer, default_workers, loader
from lightning_dpo.data.position import Limits, Position
from lightning_dpo.data.sampler import EpochSampler
from lightning_dpo.data.sets import PairSet, split_by_prompt
from lightning_dpo.data.sources import Source, sources, validation_sources
from lightning_dpo.data.store import CACHE_DIR, TokenisedSource, TokenStore
from lightning_dpo.data.stream import PairStream, StreamLoader, batch_of_records, check_streaming
from lightning_dpo.data.tokenize import PairTokenizer
from lightning_dpo.errors import DataError
from lightning_dpo.models import load_tokenizer
from lightning_dpo.signatures import check_arguments


class PreferenceDataModule(L.LightningDataModule):
    """Tokenised preference pairs for training and validation.

    Args:
        tokenizer: a tokenizer, or the folder or hub id of one.
        train: a file (JSONL, JSON, CSV, TSV, also compressed; Parquet, Arrow), glob, folder, URL or hub id; or a list
            of those and of `{path, weight, subset, split, revision}`, where weight is passes per epoch; None: no fit.
        val: a source like `train`; the fraction of distinct prompts to hold out (a prompt is never on both sides);
            several named sources `{name: source}`, which log `val/<name>/...`; or None.
        batch_size: pairs per micro-batch and rank, at most.
        max_tokens: prompt, chosen and rejected tokens per micro-batch and rank, at most; None: no limit.
        max_length: longest prompt + response, tokens; None: no limit. Longer responses are truncated on the right.
        max_prompt_length: longest prompt, tokens. Truncated on the left, after the system message. None: no limit.
        turns: which assistant turns of a multi-turn response are trained.
        ranked: which pairs a ranked list of responses gives.
        columns: names of the fields, see `Format`: columns or paths such as `input.messages`; None ignores a field.
        label: values `{first, second}` of the column `label`: the first prefers `chosen`, the second `rejected`.
        wrap: "chat" makes messages of texts: the prompt is the user's, the responses are the assistant's.
        join: text between a text prompt and its responses where neither has a space.
        weight_column, margin_column: columns or paths with a number per row, for the loss.
        subset, split, revision: of hub data sets and folders in `train` without their own; `train[:1000]` is a split.
        streaming: tokenise during training and keep nothing, for data sets larger than the disk.
        on_bad_row: stop at rows that are not preference pairs, or drop and count them.
        shuffle: a new order each epoch, a function of seed and epoch.
        num_workers: processes that prepare batches; None: 2 with a GPU, otherwise 0.
        num_proc: processes that tokenise.
        chat_template: Jinja text, a file of it, or the name of one of the tokenizer's own; replaces its default.
        chat_template_kwargs: variables of the chat template, for all rows; a column of this name has them by row.
        on_template_loss: stop at rows that the chat template does not print whole, or count them.
        date: the day (YYYY-MM-DD) for a chat template that prints the current one.
        cache_dir: folder of tokenised sources, which are found by content.

    After `setup`: `train_pairs` (None with `streaming`) is a PairSet, and `val_sets` holds one per name.

    Errors: DataError names the file, line and field of a row that is not a preference pair.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | str | Path,
        train: str | Path | list | None,
        val: str | Path | Annotated[float, "(0, 1)"] | list | dict | None = None,
        batch_size: Annotated[int, "[1, inf)"] = 8,
        max_tokens: Annotated[int, "[3, inf)"] | None = None,
        max_length: Annotated[int, "[2, inf)"] | None = None,
        max_prompt_length: Annotated[int, "[1, inf)"] | None = None,
        turns: Literal["last", "all"] = "last",
        ranked: RankedPairs = "all",
        columns: dict[str, str | None] | None = None,
        label: dict[str, Any] | None = None,
        wrap: Literal["chat"] | None = None,
        join: str | None = None,
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
        chat_template_kwargs: dict[str, Any] | None = None,
        on_template_loss: OnLoss = "stop",
        date: str | None = None,
        cache_dir: str | Path = CACHE_DIR,
        seed: int = 0,
    ):
        super().__init__()
        checked = {"val": val, "turns": turns, "ranked": ranked, "wrap": wrap, "on_bad_row": on_bad_row}
        checked |= {"on_template_loss": on_template_loss, "chat_template_kwargs": chat_template_kwargs}
        check_arguments(PreferenceDataModule, checked, allow_missing=True)
        self.tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
        if chat_template is not None:
            self.tokenizer.chat_template = template_text(chat_template, self.tokenizer)
        self.encoder = PairTokenizer(
            self.tokenizer, max_length, max_prompt_length, turns, date, on_template_loss, chat_template_kwargs
        )
        self.format = Format(columns or {}, weight_column, margin_column, ranked, label, wrap, join)
        self.store, self.num_proc, self.stop_at_bad = TokenStore(cache_dir), num_proc, on_bad_row == "stop"
        self.train, self.val, self.streaming = train, val, streaming
        self.hub = {"subset": subset, "split": split, "revision": revision}
        self.batch_size, self.max_tokens, self.shuffle = batch_size, max_tokens, shuffle
        self.num_workers, self.seed = (default_workers() if num_workers is None else num_workers), seed
        self.train_pairs: PairSet | None = None
        self.val_sets: dict[str, PairSet] = {}
        self.limits = Limits(batch_size, max_tokens)
        self._rewind()
        if streaming:
            check_streaming(val, max_tokens, num_workers or 0)

    @cached_property
    def sources(self) -> list[Source]:
        return sources(self.train, "data.train", **self.hub)

    def setup(self, stage: str | None = None) -> None:
        if stage == "fit":
            self._rewind()  # Lightning restores the position of a checkpoint after this
        if self.train_pairs is not None or self.val_sets:
            return
        if self.train is None and (stage == "fit" or isinstance(self.val, float)):
            raise DataError(f"data.train=null with data.val={self.val}: there are no pairs to train on or to split")
        train = None if self.streaming or self.train is None else self._pairs(self.sources, "data.train")
        if isinstance(self.val, float) and train is not None:
            self.train_pairs, self.val_sets["val"] = split_by_prompt(train.parts, self.val)
            return
        for name, held_out in validation_sources(self.val).items():
            self.val_sets[name] = self._pairs(held_out, f"data.{name.replace('/', '.')}")
        self.train_pairs = train

    def _pairs(self, found: list[Source], key: str) -> PairSet:
        encoder = RowEncoder(self.format, self.encoder)
        pairs = PairSet([self.store.get(source, encoder, self.num_proc, self.stop_at_bad) for source in found])
        if len(pairs) == 0:
            counts = (Counter(part.manifest[what]) for part in pairs.parts for what in ("dropped", "bad_kinds"))
            paths = ", ".join(source.path for source in found)
            raise DataError(f"{key}={paths}: no usable pairs; dropped: {dict(sum(counts, Counter()))}")
        return pairs

    def sets(self) -> dict[str, PairSet]:
        """The sets by name: `train`, and `val` or `val/<name>`."""
        train = {} if self.train_pairs is None else {"train": self.train_pairs}
        return {**train, **self.val_sets}

    def tokenised_sources(self) -> list[tuple[str, TokenisedSource]]:
        """Each source once, with the name of the first set that has it."""
        found: dict[int, tuple[str, TokenisedSource]] = {}
        for name, pairs in self.sets().items():
            for part in pairs.parts:
                found.setdefault(id(part), (name, part))
        return list(found.values())

    def pairs(self) -> dict[str, PairBatch]:
        """All pairs of each source, by set and path: the pairs that a reference is computed for."""
        found: dict[str, PairBatch] = {}
        for name, part in self.tokenised_sources():
            label = f"{name}, {part.source.path}"  # two splits of a data set have one path
            if len(part):
                found[f"{label} ({len(found) + 1})" if label in found else label] = part.pairs
        return found

    @property
    def stop_ids(self) -> list[int]:
        """Token ids that end a completion: those that end responses, and EOS."""
        ends = {i for _, part in self.tokenised_sources() for i in part.manifest["ends"]}
        return sorted(ends | self.stream_ends | {self.encoder.tokenizer.eos_token_id})

    def train_dataloader(self) -> DataLoader:
        if self.trainer is not None:
            check_trainer(self.trainer)
        if self.streaming:
            stream = PairStream(
                self.sources, self.format, self.encoder, self.batch_size, self.seed, self.shuffle, self.stop_at_bad
            )
            return StreamLoader(stream, min(self.num_workers, 1), self.position.epoch, self.position.rows_used)
        assert self.train_pairs is not None, "call setup() first"
        order = self._order(self.train_pairs)
        order.set_epoch(self.position.epoch)
        if self.max_tokens and (parts := [source.weight for source in self.sources if source.weight % 1]):
            raise DataError(
                f"data.max_tokens={self.max_tokens} with a weight of {parts[0]} in data.train: batches are formed once "
                "for all epochs, but a fraction of a source differs by epoch; use whole weights"
            )
        order.start = self.position.pairs
        return self._loader(self.train_pairs, order, self.position.batches)

    def val_dataloader(self) -> list[DataLoader]:
        return [
            self._loader(pairs, EpochSampler(pairs.sizes, [1.0] * len(pairs.sizes), seed=0, shuffle=False))
            for pairs in self.val_sets.values()
        ]

    test_dataloader = predict_dataloader = val_dataloader

    def batch(self, rows: Sequence[Mapping[str, Any]]) -> PairBatch:
        """One batch of rows such as those of the files, for a Scorer or a DataLoader([batch], batch_size=None).

        Errors: DataError for a row that is not a preference pair, or that no loss can learn from.
        """
        return batch_of_records(rows, self.format, self.encoder)

    def _order(self, pairs: PairSet) -> EpochSampler:
        return EpochSampler(pairs.sizes, [source.weight for source in self.sources], self.seed, self.shuffle)

    def _loader(self, pairs: PairSet, order: EpochSampler, batches_taken: int = 0) -> DataLoader:
        return loader(pairs, order, self.batch_size, self.max_tokens, self.num_workers, batches_taken)

    def on_after_batch_transfer(self, batch: PairBatch, dataloader_idx: int) -> PairBatch:
        if self.trainer is not None and self.trainer.training:
            self.used(batch, self.trainer.current_epoch, self.trainer.is_last_batch)
        return batch

    def used(self, batch: PairBatch, epoch: int, last: bool = False) -> None:
        """Record that training has taken this batch, the last one of the epoch or not."""
        self.position = self.position.after(batch, epoch, last)
        self.stream_counts.update(batch.rows_read)
        self.stream_ends |= batch.ends

    def _rewind(self) -> None:
        self.position = Position()
        """Where the next training loader begins."""
        self.stream_counts: Counter = Counter()
        """Outcomes of the rows that training has read from a stream: pairs, and the reasons of dropped rows."""
        self.stream_ends: set[int] = set()

    def content(self) -> dict[str, list[str]]:
        """Content hashes of each set's sources, in order. Equal lists mean equal pairs. A stream has none."""
        return {name: [part.name for part in pairs.parts] for name, pairs in self.sets().items()}

    def state_dict(self) -> dict[str, Any]:
        """The position in the data, and for a stream the outcomes of its rows."""
        stream = {"stream_counts": dict(self.stream_counts), "stream_ends": sorted(self.stream_ends)}
        return {**self.position._asdict(), "limits": list(self.limits), **stream}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The next training loader begins at this position. Errors: DataError, see Position."""
        pairs = None if self.train_pairs is None else len(self._order(self.train_pairs))
        self.position = Position.restored(state_dict, self.limits, pairs)
        self.stream_counts = Counter(state_dict["stream_counts"])
        self.stream_ends = set(state_dict.get("stream_ends", ()))  # absent from checkpoints of 0.1.0
