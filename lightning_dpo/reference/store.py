"""Reference log-probabilities on disk, found by content.

An entry of the cache has `logps.safetensors` (float32, nats, one value per trained token) and a readable
`manifest.json`. It is computed in parts, each in its own file until the entry is complete: an interrupted run resumes
with the next part, and several ranks divide the parts among them.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from lightning_dpo.batch import PairBatch, TokenLogps
from lightning_dpo.cache import Cache
from lightning_dpo.files import file_sha256, write_json
from lightning_dpo.ragged import Ragged, ranges

log = logging.getLogger(__name__)

FORMAT = 1
"""Part of every key: raise it when the scoring rule changes, so that old entries are not found."""
SINGLE_PROCESS = SimpleNamespace(global_rank=0, world_size=1, broadcast=lambda value: value, barrier=lambda: None)
"""A stand-in for a Lightning strategy."""


class ReferenceStore:
    def __init__(self, folder: str | Path):
        self.cache = Cache(folder, "reference.cache_dir")

    def get(
        self,
        key: dict,
        pairs: PairBatch,
        parts: Sequence[Sequence[int]],
        compute: Callable[[Sequence[int]], TokenLogps],
        ranks: Any = SINGLE_PROCESS,
    ) -> TokenLogps:
        """The entry of this key. If it is missing or damaged, `compute` is called for each of `parts`.

        Args:
            parts: row numbers of the pairs, each row in one part; the same in each call with the same pairs.
            compute: the log-probabilities of the pairs of a part.
            ranks: the strategy of a run with several ranks, each of which computes its share.
        """
        entry = self.cache.path(key)
        folder, first = entry.with_suffix(".parts"), ranks.global_rank == 0
        with self.cache.lock(key) if first else nullcontext():
            stored = self.cache.read(key, partial(_read, pairs=pairs)) if first else None
            if not ranks.broadcast(stored is not None):
                folder.mkdir(exist_ok=True)
                for number in range(ranks.global_rank, len(parts), ranks.world_size):
                    _compute_part(folder / f"{number:06}.safetensors", parts[number], compute)
                ranks.barrier()
                if first:
                    self.cache.write(key, partial(_write, key=key, logps=_joined(folder, parts, pairs)))
                    shutil.rmtree(folder)
                ranks.barrier()
        stored = stored or _read(entry, pairs)
        log.info("reference log-probabilities of %d pairs in %s", len(pairs), entry)
        return stored


def _read(entry: Path, pairs: PairBatch) -> TokenLogps:
    manifest = json.loads((entry / "manifest.json").read_text(encoding="utf-8"))
    file = entry / "logps.safetensors"
    if file_sha256(file) != manifest["sha256"]:
        raise ValueError("its checksum differs from the manifest")
    tensors, sides = load_file(file), []
    for side, lengths in zip(TokenLogps._fields, pairs.trained_lengths(), strict=True):
        if len(tensors[side]) != int(lengths.sum()):
            raise ValueError(f"it has {len(tensors[side])} values for {int(lengths.sum())} tokens")
        sides.append(Ragged(tensors[side], lengths))
    return TokenLogps(*sides)


def _write(folder: Path, key: dict, logps: TokenLogps) -> None:
    file = folder / "logps.safetensors"
    save_file({"chosen": logps.chosen.values, "rejected": logps.rejected.values}, file)
    manifest = {
        "what": "log-probabilities of response tokens under the reference, nats, float32",
        **key,
        "pairs": len(logps.chosen),
        "tokens": {"chosen": len(logps.chosen.values), "rejected": len(logps.rejected.values)},
        "sha256": file_sha256(file),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    write_json(folder / "manifest.json", manifest)


def _compute_part(path: Path, rows: Sequence[int], compute: Callable[[Sequence[int]], TokenLogps]) -> None:
    """Write a part, unless the file is whole and has the same rows: another layout cuts the pairs differently."""
    part = {"rows": torch.as_tensor(rows)}
    with suppress(OSError, SafetensorError), safe_open(path, framework="pt") as file:
        tensors = {side: file.get_tensor(side) for side in file.keys()}  # noqa: SIM118
        if (file.metadata() or {}).get("sha256") == _sha256(tensors | part):
            return
    computed = compute(rows)
    tensors = {side: getattr(computed, side).values.float().cpu().contiguous() for side in TokenLogps._fields}
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    save_file(tensors, temporary, metadata={"sha256": _sha256(tensors | part)})
    temporary.replace(path)


def _joined(folder: Path, parts: Sequence[Sequence[int]], pairs: PairBatch) -> TokenLogps:
    """The values of all parts, in the order of the pairs."""
    sides = []
    for side, lengths in zip(TokenLogps._fields, pairs.trained_lengths(), strict=True):
        values = torch.empty(int(lengths.sum()), dtype=torch.float32)
        first = lengths.cumsum(0) - lengths
        for number, rows in enumerate(parts):
            at = torch.as_tensor(rows)
            values[ranges(first[at], lengths[at])] = load_file(folder / f"{number:06}.safetensors")[side]
        sides.append(Ragged(values, lengths))
    return TokenLogps(*sides)


def content_key(model: PreTrainedModel, weights: str, pairs: PairBatch, precision: str) -> dict:
    """Everything that changes the numbers, and nothing else; `weights` is `weights_sha256(model)`."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    sides = (pairs.prompt, pairs.chosen, pairs.rejected, *(pairs.trained or ()))
    tokens = (t for side in sides for t in (side.values, side.lengths))
    return {
        "format": FORMAT,
        "weights": weights,
        "config": hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest(),
        "token_ids": _sha256({str(i): t for i, t in enumerate(tokens)}),
        "dtype": str(model.dtype).removeprefix("torch."),
        "precision": precision,
    }


def weights_sha256(model: PreTrainedModel) -> str:
    """Hash of the names, dtypes, shapes and values of all weights."""
    return _sha256(model.state_dict())


def _sha256(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
