"""Tokenised sources on disk, found by content and memory-mapped, so memory does not grow with the rows."""

import hashlib
import json
import logging
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from lightning_dpo.batch import PairBatch
from lightning_dpo.cache import Cache, Outdated
from lightning_dpo.data.columns import DTYPES, SHOWN, SIDES, Bad, RowEncoder, encoded_chunks
from lightning_dpo.data.rows import located
from lightning_dpo.data.sources import Source
from lightning_dpo.data.template_loss import LOSS
from lightning_dpo.errors import DataError
from lightning_dpo.files import write_json
from lightning_dpo.ragged import Ragged

log = logging.getLogger(__name__)

FORMAT = 2
"""Part of every key. Increase it when rows are read or encoded differently, so that old entries are not used."""
READER = 4
"""Version of the code that reads rows. Entries of others are written again, under the same name: names are part of the
identity of runs, which stay the same runs if their tokens do."""
CACHE_DIR = "~/.cache/lightning_dpo/tokens"


class TokenisedSource:
    """The pairs of one source, as one memory-mapped PairBatch, and the manifest that counts its rows."""

    def __init__(self, folder: Path, source: Source):
        self.folder, self.source = folder, source
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if self.manifest.get("reader") != READER:
            raise Outdated(f"written by reader {self.manifest.get('reader')}, this is {READER}")
        for name, size in self.manifest["sizes"].items():
            if (folder / f"{name}.bin").stat().st_size != size * np.dtype(DTYPES.get(name, np.int64)).itemsize:
                raise ValueError(f"the size of {name}.bin differs from its manifest")
        self.pairs = PairBatch(*map(self._ragged, SIDES), index=self.tensor("number"))
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
    def name(self) -> str:
        """Identifies the pairs: that of the folder, and what rows have that 0.1.0 did not read."""
        return " ".join([self.folder.name, *sorted(what for kind, what, _ in self.manifest["notes"] if kind == "read")])

    @property
    def bad(self) -> list[Bad]:
        return [Bad(*row) for row in self.manifest["bad"]]

    def column(self, name: str) -> np.ndarray:
        """One value per pair, memory-mapped."""
        if len(self) == 0:
            return np.empty(0, DTYPES[name])
        return np.memmap(self.folder / f"{name}.bin", DTYPES[name], mode="r")

    def tensor(self, name: str) -> Tensor:
        size, empty = self.manifest["sizes"][name], torch.from_numpy(np.empty(0, DTYPES.get(name, np.int64)))
        if size == 0:
            return empty
        # Not shared: writing to the tensor does not change the file.
        return torch.from_file(str(self.folder / f"{name}.bin"), shared=False, size=size, dtype=empty.dtype)

    def _ragged(self, side: str, values: str | None = None) -> Ragged:
        return Ragged(self.tensor(values or side), self.tensor(f"{side}_lengths"), self.tensor(f"{side}_ends"))

    def where(self, row: int) -> str:
        return self.source.where(int(self.column("number")[row]))


class TokenStore:
    """A cache of tokenised sources. An entry has one raw file per column and a readable `manifest.json`."""

    def __init__(self, folder: str | Path = CACHE_DIR):
        self.cache = Cache(folder, "data.cache_dir")

    def get(self, source: Source, encoder: RowEncoder, num_proc: int, stop_at_bad: bool) -> TokenisedSource:
        """The entry of this source, which is tokenised if there is none.

        Errors: DataError if a row is bad and `stop_at_bad`; nothing is kept then.
        """
        key = content_key(source, encoder)
        stored = self.cache.entry(
            key,
            read=lambda entry: TokenisedSource(entry, source),
            write=lambda folder: self._write(folder, key, source, encoder, num_proc, stop_at_bad),
        )
        log.info("%d tokenised pairs of %s in %s", len(stored), source.path, stored.folder)
        if stop_at_bad:
            _refuse_bad(stored.bad, stored.manifest["bad_kinds"], source)
        return stored

    def _write(
        self, folder: Path, key: dict, source: Source, encoder: RowEncoder, num_proc: int, stop_at_bad: bool
    ) -> None:
        totals: dict[str, Any] = {"records": 0, "tokens_cut": 0, "masked": False}
        counts, kinds, notes, ends, bad = Counter(), Counter(), Counter(), set(), []
        sizes = dict.fromkeys(DTYPES, 0)
        chunks: Any = track(source.chunks(), f"tokenising {Path(source.path).name}", transient=True)
        # Closed here also after an error: collected later, in a thread of another progress bar, it might never end.
        with closing(chunks), ExitStack() as stack:
            names = [*DTYPES, *(f"{side}_ends" for side in SIDES)]
            files = {name: stack.enter_context(open(folder / f"{name}.bin", "wb")) for name in names}
            for chunk in encoded_chunks(encoder, chunks, num_proc, stop_at_bad):
                if not stop_at_bad and chunk.bad_kinds[LOSS]:
                    _refuse_bad(chunk.bad[:1], {LOSS: 1}, source)
                for side in SIDES:
                    side_ends = chunk.columns[f"{side}_lengths"].cumsum() + sizes[side]
                    files[f"{side}_ends"].write(side_ends.tobytes())
                for name, values in chunk.columns.items():
                    files[name].write(values.tobytes())
                    sizes[name] += len(values)
                totals["records"] += chunk.records
                totals["tokens_cut"] += chunk.tokens_cut
                totals["masked"] |= chunk.masked
                counts, kinds, ends = counts + chunk.counts, kinds + chunk.bad_kinds, ends | chunk.ends
                notes += chunk.notes
                bad = (bad + chunk.bad)[:SHOWN]
        if not totals["records"]:
            raise DataError(f"{source.path}: the file holds no rows")
        if not totals["masked"]:
            for side in ("chosen", "rejected"):
                (folder / f"{side}_trained.bin").unlink()
                del sizes[f"{side}_trained"]
        if stop_at_bad:
            _refuse_bad(bad, kinds, source)
        if source.content() != key["source"]:
            raise DataError(f"{source.path}: the file changed while it was read; type the command again")
        manifest = {
            "what": "tokenised preference pairs; one raw little-endian file per column",
            "key": key,
            "reader": READER,
            **totals,
            "dropped": dict(counts),
            "bad_kinds": dict(kinds),
            "bad": bad,
            "ends": sorted(ends),
            "notes": [[*note, rows] for note, rows in sorted(notes.items())],
            "sizes": sizes | {f"{side}_ends": sizes["number"] for side in SIDES},
        }
        write_json(folder / "manifest.json", manifest)


def content_key(source: Source, encoder: RowEncoder) -> dict[str, Any]:
    """Everything that changes the tokens, and nothing else."""
    pairs = encoder.tokenizer
    tokenizer, chat = pairs.tokenizer, pairs.chat
    spelled = [pairs.backend().to_str(), str(tokenizer.chat_template), str(tokenizer.special_tokens_map)]
    return {
        "format": FORMAT,
        "source": source.content(),
        "tokenizer": hashlib.sha256("\0".join(spelled).encode()).hexdigest(),
        **encoder.format.key(),
        "turns": chat.turns,
        "date": chat.date,
        "max_length": pairs.max_length,
        "max_prompt_length": pairs.max_prompt_length,
        **({"chat_template_kwargs": chat.options} if chat.options else {}),
        **({"on_template_loss": chat.on_loss} if chat.on_loss != "stop" else {}),
    }


def _refuse_bad(bad: list[Bad], kinds: dict[str, int], source: Source) -> None:
    """Raise DataError if a row is bad. The message quotes the first and counts all."""
    if not bad:
        return
    lines = [located(source.where(bad[0].number), bad[0].field, bad[0].message)]
    if more := sum(kinds.values()) - 1:
        counts = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
        rest = [b.number for b in bad[1:6]]
        numbers = f"in {source.unit} " + ", ".join(str(source.locate(number)[1]) for number in rest)
        places = numbers if len(source.files) < 2 else "at " + ", ".join(map(source.where, rest))
        lines.append(f"{more} more rows of {source.path} are bad ({counts} in all); first {places}")
    if set(kinds) != {LOSS}:
        lines.append("correct them, or type data.on_bad_row=drop to drop and count bad rows")
    raise DataError("; ".join(lines))
