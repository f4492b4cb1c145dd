"""PreferenceDataModule: files of preference pairs -> ragged batches."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import lightning as L
import torch
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedTokenizerBase

from lightning_dpo.batch import PairBatch
from lightning_dpo.data.rows import read_rows, split_by_prompt
from lightning_dpo.data.tokenize import PairTokenizer
from lightning_dpo.models import load_tokenizer


class PreferenceDataModule(L.LightningDataModule):
    """Tokenised preference pairs for training and validation.

    Args:
        tokenizer: a tokenizer, or the folder or hub id of one.
        train: JSONL file of rows with `prompt`, `chosen`, `rejected`, as text or as chat messages.
        val: JSONL file, or the share of distinct prompts that is held out (a prompt is never on both sides), or None.
        batch_size: pairs per micro-batch and rank.
        max_length: longest prompt + response, tokens. A longer response is cut on the right; a pair whose prompt alone
            fills it is dropped and counted. None: no limit.
        shuffle: a new order each epoch, a function of seed and epoch.
        num_workers: processes that prepare batches.
        chat_template: Jinja text, or a file of it; replaces the tokenizer's own.

    After `setup`: `train_pairs`, `val_pairs` (None without validation), and `counts`, rows by what became of them.

    Errors: DataError names the file, line and field of a row that is not a preference pair.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | str | Path,
        train: str | Path,
        val: str | Path | Annotated[float, "(0, 1)"] | None = None,
        batch_size: Annotated[int, "[1, inf)"] = 8,
        max_length: Annotated[int, "[2, inf)"] | None = None,
        shuffle: bool = True,
        num_workers: Annotated[int, "[0, inf)"] = 0,
        chat_template: str | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
        if chat_template is not None:
            self.tokenizer.chat_template = _template_text(chat_template)
        self.encoder = PairTokenizer(self.tokenizer, max_length)
        self.train, self.val = train, val
        self.batch_size, self.shuffle, self.num_workers, self.seed = batch_size, shuffle, num_workers, seed
        self.train_pairs: PairBatch | None = None
        self.val_pairs: PairBatch | None = None
        self.stop_ids: list[int] = []
        self.counts: dict[str, dict[str, int]] = {}

    def setup(self, stage: str | None = None) -> None:
        if self.train_pairs is not None:
            return
        rows = {"train": read_rows(self.train)}
        if isinstance(self.val, str | Path):
            rows["val"] = read_rows(self.val)
        elif self.val is not None:
            rows["train"], rows["val"] = split_by_prompt(rows["train"], self.val)
        encoded = {}
        for name, part in rows.items():
            encoded[name], counts = self.encoder.encode(part)
            self.counts[name] = {"rows": len(part), "pairs": len(encoded[name]), **counts}
        self.train_pairs, self.val_pairs = encoded["train"], encoded.get("val")
        # A completion ends where a response does; a chat model may also fall back on EOS.
        ends = {self.encoder.end_id(row) for part in rows.values() for row in part}
        self.stop_ids = sorted(ends | {self.encoder.tokenizer.eos_token_id})  # type: ignore[type-var]

    def pairs(self) -> dict[str, PairBatch]:
        """The data sets by name, `train` and, if there is one, `val`."""
        named = {"train": self.train_pairs, "val": self.val_pairs}
        return {name: pairs for name, pairs in named.items() if pairs is not None}

    def train_dataloader(self) -> DataLoader:
        assert self.train_pairs is not None, "call setup() first"
        return self._loader(self.train_pairs, EpochSampler(len(self.train_pairs), self.seed, self.shuffle))

    def val_dataloader(self) -> DataLoader | list:
        return [] if self.val_pairs is None else self._loader(self.val_pairs, range(len(self.val_pairs)))

    def _loader(self, pairs: PairBatch, order) -> DataLoader:
        return DataLoader(
            range(len(pairs)),  # type: ignore[arg-type]
            batch_size=self.batch_size,
            sampler=order,
            collate_fn=pairs.select,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )


class EpochSampler(Sampler[int]):
    """Row numbers in an order that is a function of seed and epoch; Lightning tells the epoch."""

    def __init__(self, rows: int, seed: int, shuffle: bool):
        self.rows, self.seed, self.shuffle, self.epoch = rows, seed, shuffle, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        if not self.shuffle:
            return iter(range(self.rows))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(torch.randperm(self.rows, generator=generator).tolist())


def _template_text(template: str) -> str:
    """A Jinja template has braces or spaces; anything else is the path of a file that must exist."""
    if "{" in template:
        return template
    return Path(template).expanduser().read_text(encoding="utf-8")
