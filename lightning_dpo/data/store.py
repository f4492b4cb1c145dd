"""Tokenised sources on disk, found by content and memory-mapped, so that memory does not grow with the rows."""

import hashlib
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from lightning_dpo.batch import PairBatch
from lightning_dpo.cache import Cache
from lightning_dpo.data.columns import DTYPES, Bad, RowEncoder, encoded_chunks
from lightning_dpo.data.sources import Source
from lightning_dpo.errors import DataError
from lightning_dpo.files import write_json
from lightning_dpo.ragged import Ragged

log = logging.getLogger(__name__)

FORMAT = 2
"""Part of every key: raise it when a row would be read or encoded otherwise, so that old entries are not found."""
CACHE_DIR = "~/.cache/lightning_dpo/tokens"
SHOWN = 20
"""Bad rows that are kept as examples."""


class TokenisedSource:
    """The pairs of one source.

    pairs: all of them as one memory-mapped PairBatch. counts: what became of the rows.
    """

    def __init__(self, folder: Path, source: Source):
        self.folder, self.source = folder, source
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        for name, size in self.manifest["sizes"].items():
            if (folder / f"{name}.bin").stat().st_size != size * np.dtype(DTYPES.get(name, np.int64)).itemsize:
                raise ValueError(f"{name}.bin has another size than its manifest says")
        sides = (self._ragged(name) for name in ("prompt", "chosen", "rejected"))
        self.pairs = PairBatch(*sides, index=self.tensor("number"))
        if self.manifest["masked"]:
            chosen, rejected = (self._ragged(side, f"{side}_trained") for side in ("chosen", "rejected"))
            self.pairs.trained = chosen, rejected
        if self.manifest["key"]["weight_column"]:
            self.pairs.weight = self.tensor("weight")
        if self.manifest["key"]["margin_column"]:
            self.pairs.margin = self.tensor("margin")

    def __len__(self) -> int:
        return self.manifest["sizes"]["number"]

    @property
    def bad(self) -> list[Bad]:
        return [Bad(*row) for row in self.manifest["bad"]]

    def column(self, name: str) -> np.ndarray:
        """One value per pair, memory-mapped."""
        if len(self) == 0:
            return np.empty(0, DTYPES[name])
        return np.memmap(self.folder / f"{name}.bin", DTYPES[name], mode="r")

    def tensor(self, name: str) -> Tensor:
        size, dtype = self.manifest["sizes"][name], np.dtype(DTYPES.get(name, np.int64))
        kind = torch.from_numpy(np.empty(0, dtype)).dtype
        # Private pages: nothing that is written to the tensor reaches the file.
        return (
            torch.from_file(str(self.folder / f"{name}.bin"), False, size, dtype=kind)
            if size
            else torch.empty(0, dtype=kind)
        )

    def _ragged(self, side: str, values: str | None = None) -> Ragged:
        return Ragged(self.tensor(values or side), self.tensor(f"{side}_lengths"), self.tensor(f"{side}_ends"))

    def where(self, row: int) -> str:
        return self.source.where(int(self.column("number")[row]))


class TokenStore:
    """Entries are found by content: one raw file per column and a `manifest.json` to read."""

    def __init__(self, folder: str | Path = CACHE_DIR):
        self.cache = Cache(folder)

    def get(self, source: Source, encoder: RowEncoder, num_proc: int, stop_at_bad: bool) -> TokenisedSource:
        """The entry of this source, tokenised where there is none.

        Errors: DataError if a row is bad and `stop_at_bad`; nothing is kept then.
        """
        key = content_key(source, encoder)
        stored = self.cache.entry(
            key,
            read=lambda entry: TokenisedSource(entry, source),
            write=lambda folder: self._write(folder, key, source, encoder, num_proc, stop_at_bad),
        )
        log.info("%d tokenised pairs of %s in %s", len(stored), source.path, stored.folder)
        _refuse_bad(stored.bad, stored.manifest, source, stop_at_bad)
        return stored

    def _write(
        self, folder: Path, key: dict, source: Source, encoder: RowEncoder, num_proc: int, stop_at_bad: bool
    ) -> None:
        totals: dict[str, Any] = {"records": 0, "tokens_cut": 0, "masked": False}
        counts, kinds, ends, bad = Counter(), Counter(), set(), []
        sizes, last = Counter({name: 0 for name in DTYPES}), dict.fromkeys(("prompt", "chosen", "rejected"), 0)
        files = {name: open(folder / f"{name}.bin", "wb") for name in [*DTYPES, *(f"{s}_ends" for s in last)]}
        chunks = track(source.chunks(), f"tokenising {Path(source.path).name}", transient=True)
        try:
            for chunk in encoded_chunks(encoder, chunks, num_proc, stop_at_bad):
                for name, values in chunk.columns.items():
                    files[name].write(values.tobytes())
                    sizes[name] += len(values)
                for side in last:
                    ends_of = chunk.columns[f"{side}_lengths"].cumsum() + last[side]
                    files[f"{side}_ends"].write(ends_of.tobytes())
                    last[side] = int(ends_of[-1]) if len(ends_of) else last[side]
                totals["records"] += chunk.records
                totals["tokens_cut"] += chunk.tokens_cut
                totals["masked"] |= chunk.masked
                counts, kinds, ends = counts + chunk.counts, kinds + chunk.bad_kinds, ends | chunk.ends
                bad = (bad + chunk.bad)[:SHOWN]
        finally:
            for file in files.values():
                file.close()
        if not totals["records"]:
            raise DataError(f"{source.path}: the file holds no rows")
        if not totals["masked"]:
            for side in ("chosen", "rejected"):
                (folder / f"{side}_trained.bin").unlink()
                del sizes[f"{side}_trained"]
        manifest = {
            "what": "tokenised preference pairs; one raw little-endian file per column",
            "key": key,
            **totals,
            "dropped": dict(counts),
            "bad_kinds": dict(kinds),
            "bad": bad,
            "ends": sorted(ends),
            "sizes": dict(sizes) | {f"{side}_ends": sizes["number"] for side in last},
        }
        _refuse_bad(bad, manifest, source, stop_at_bad)
        if source.content() != key["source"]:
            raise DataError(f"{source.path}: the file has changed while it was read; type the command again")
        write_json(folder / "manifest.json", manifest)


def content_key(source: Source, encoder: RowEncoder) -> dict[str, Any]:
    """What changes the tokens, and nothing else: content, tokenizer, template, format and budgets."""
    pairs = encoder.tokenizer
    tokenizer = pairs.tokenizer
    spelled = [pairs.backend().to_str(), str(tokenizer.chat_template), str(tokenizer.special_tokens_map)]
    return {
        "format": FORMAT,
        "source": source.content(),
        "tokenizer": hashlib.sha256("\0".join(spelled).encode()).hexdigest(),
        "columns": dict(encoder.format.columns),
        "weight_column": encoder.format.weight_column,
        "margin_column": encoder.format.margin_column,
        "ranked": encoder.format.ranked,
        "turns": pairs.turns,
        "date": pairs.chat.date,
        "max_length": pairs.max_length,
        "max_prompt_length": pairs.max_prompt_length,
    }


def _refuse_bad(bad: list[Bad], manifest: dict[str, Any], source: Source, stop_at_bad: bool) -> None:
    if not bad or not stop_at_bad:
        return
    first, more = bad[0], sum(manifest["bad_kinds"].values()) - 1
    field = f" field {first.field!r}:" if first.field else ""
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(manifest["bad_kinds"].items()))
    rest = (
        f"\n{more} more rows of {source.path} are bad ({kinds} in all); first in {_lines(bad, source)}" if more else ""
    )
    raise DataError(
        f"{source.where(first.number)}:{field} {first.message}{rest}\n"
        "correct them, or type data.on_bad_row=drop to leave bad rows out and count them"
    )


def _lines(bad: list[Bad], source: Source) -> str:
    return f"{source.unit}s " + ", ".join(str(b.number) for b in bad[1:6])
