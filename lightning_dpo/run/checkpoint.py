"""Checkpoint files: written completely or not at all, and verified when read.

`last.ckpt` is the newest. `previous.ckpt` is the one before it, so that a complete file always exists.
"""

import errno
import logging
import os
import pickle
import struct
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from lightning_dpo.errors import ConfigError
from lightning_dpo.files import fsync

log = logging.getLogger(__name__)

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"

UNREADABLE = (zipfile.BadZipFile, zlib.error, struct.error, RuntimeError, EOFError, ValueError, LookupError)
UNREADABLE += (OverflowError, TypeError, AttributeError, AssertionError)
"""What zipfile and torch raise for a damaged file."""


class Damaged(ValueError):
    """The file is not a complete checkpoint of tensors and plain values."""


class AtomicCheckpointIO(CheckpointIO):
    """Writes and reads the checkpoints of a Trainer: `Trainer(plugins=[AtomicCheckpointIO()])`. Lightning's own writer
    uses $TMPDIR, which may be on another disk; when that disk is full, it truncates the existing checkpoint."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Errors: OSError with the path. An existing checkpoint is kept, at least as `previous.ckpt`."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if path.name == LAST and path.exists():
                os.replace(path, path.with_name(PREVIOUS))
            os.replace(temporary, path)
            fsync(path.parent)
        except (OSError, RuntimeError) as error:  # torch turns errors of the disk into RuntimeError
            with suppress(OSError):  # the folder may have become read-only
                temporary.unlink(missing_ok=True)
            raise OSError(f"{path}: the checkpoint could not be written ({_reason(error)})") from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def _reason(error: BaseException) -> str:
    """The message of the underlying OSError, which torch hides behind its own."""
    while not isinstance(error, OSError) and (cause := error.__cause__ or error.__context__):
        error = cause
    return " ".join(str(error).split())[:200]


def read(path: Path, lazily: bool = False) -> dict[str, Any]:
    """The checkpoint, on the CPU; `lazily` memory-maps its tensors. Code in the file is never run.

    Errors: Damaged for a file that is truncated or altered, or that holds more than tensors and plain values.
    """
    try:
        with zipfile.ZipFile(path) as file:  # torch.load does not verify checksums
            if broken := file.testzip():
                raise Damaged(f"{path}: the checksum of {broken} does not match")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=lazily)
    except pickle.UnpicklingError:
        raise Damaged(f"{path}: it holds more than tensors and plain values; code in it is not run") from None
    except (*UNREADABLE, OSError) as error:
        if isinstance(error, Damaged) or (isinstance(error, OSError) and error.errno != errno.EINVAL):
            raise
        raise Damaged(f"{path}: {_reason(error)}") from None


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run; None before the first. A damaged one is renamed, with a warning. Errors:
    ConfigError if every checkpoint is damaged."""
    damaged: dict[Path, Damaged] = {}
    for path in filter(Path.exists, (folder / LAST, folder / PREVIOUS)):
        try:
            read(path, lazily=True)
        except Damaged as error:
            damaged[path] = error
            continue
        for broken, error in damaged.items():
            renamed = broken.replace(broken.with_name(broken.name + ".damaged"))
            log.warning("damaged checkpoint, renamed to %s: %s; resuming from %s instead", renamed.name, error, path)
        return path
    if damaged:
        errors = "; ".join(map(str, damaged.values()))
        raise ConfigError(f"every checkpoint is damaged: {errors}; type another output_dir=... to start again")
    return None
