"""Reference log-probabilities on disk, found by content.

An entry is a folder named by its key: `logps.safetensors` (float32, nats, one value per response token) and a
`manifest.json` to read. It appears whole or not at all; a lock lets the second of two runs wait for the first; a
damaged entry is computed again.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from lightning_dpo.batch import PairBatch, Ragged, TokenLogps
from lightning_dpo.files import whole_folder, write_json

log = logging.getLogger(__name__)

FORMAT = 1
"""Part of every key: raise it when the scoring rule changes, so that old entries are not found."""


class ReferenceStore:
    def __init__(self, folder: Path):
        self.folder = folder

    def get(self, key: dict, pairs: PairBatch, compute: Callable[[], TokenLogps]) -> TokenLogps:
        """The entry of this key; `compute` runs where there is none, or a damaged one."""
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        entry = self.folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f"{name}.lock"):
            if (stored := self._read(entry, pairs)) is not None:
                log.info("reference log-probabilities of %d pairs read from %s", len(pairs), entry)
                return stored
            computed = compute()
            self._write(entry, key, computed)
            return computed

    def _read(self, entry: Path, pairs: PairBatch) -> TokenLogps | None:
        if not entry.exists():
            return None
        try:
            manifest = json.loads((entry / "manifest.json").read_text(encoding="utf-8"))
            file = entry / "logps.safetensors"
            if file_sha256(file) != manifest["sha256"]:
                raise ValueError("its checksum differs from the manifest's")
            values = load_file(file)
            sides = zip(("chosen", "rejected"), pairs.trained_lengths(), strict=True)
            return TokenLogps(*(Ragged(_sized(values[side], lengths), lengths) for side, lengths in sides))
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            log.warning("the reference cache entry %s is damaged (%s); computing it again", entry, error)
            return None

    def _write(self, entry: Path, key: dict, logps: TokenLogps) -> None:
        with whole_folder(entry) as folder:
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


def content_key(model: PreTrainedModel, weights: str, pairs: PairBatch, precision: str) -> dict:
    """What changes the numbers, and nothing else; `weights` is the hash of the model's."""
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
    """Hash of the names, types, shapes and values of all weights."""
    return _sha256(model.state_dict())


def _sha256(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sized(values: Tensor, lengths: Tensor) -> Tensor:
    if len(values) != int(lengths.sum()):
        raise ValueError(f"it holds {len(values)} values for {int(lengths.sum())} tokens")
    return values
