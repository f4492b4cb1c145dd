"""Checkpoint files that appear whole or not at all, and of which a damaged one is noticed.

`last.ckpt` is the newest, `previous.ckpt` the one before it, which stays until the new one is complete.
"""

import errno
import logging
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from lightning_dpo.errors import ConfigError
from lightning_dpo.files import fsync

log = logging.getLogger(__name__)

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"

UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, RuntimeError, EOFError, ValueError, LookupError, OverflowError),
    *(NotImplementedError, TypeError, AttributeError, AssertionError),
)
"""What zipfile and torch raise for a file of which some bytes are others."""


class Damaged(ValueError):
    """A file that is no whole checkpoint of tensors and plain values."""


class AtomicCheckpointIO(CheckpointIO):
    """How a Trainer writes and reads checkpoints: `Trainer(plugins=[AtomicCheckpointIO()])`.

    A new `last.ckpt` moves the one before it to `previous.ckpt`. Lightning's own writer goes by way of $TMPDIR, which
    may be another disk, and where that one is full it leaves the checkpoint before it truncated.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Errors: OSError that names the path; a checkpoint that was there is kept, as `previous.ckpt` at least."""
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
        except (OSError, RuntimeError) as error:  # torch wraps the disk's errors in its own
            try:
                temporary.unlink(missing_ok=True)
            except OSError:  # a folder that has become read-only
                pass
            raise OSError(f"{path}: the checkpoint could not be written ({_reason(error)})") from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def _reason(error: BaseException) -> str:
    """The disk's own words, which torch hides behind its writer's."""
    seen = error
    while not isinstance(seen, OSError) and (deeper := seen.__cause__ or seen.__context__):
        seen = deeper
    return " ".join(str(seen).split())[:200]


def read(path: Path, lazily: bool = False) -> dict[str, Any]:
    """The checkpoint, on the CPU. Code in the file is never run.

    Args:
        lazily: map tensors into memory instead of reading them.

    Errors: Damaged for a file that was cut or altered, or that holds more than tensors and plain values.
    """
    try:
        with zipfile.ZipFile(path) as file:  # torch.load reads records without their checksums
            if broken := file.testzip():
                raise Damaged(f"{path}: the checksum of {broken} does not fit")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=lazily)
    except pickle.UnpicklingError:
        raise Damaged(f"{path}: it holds more than tensors and plain values, and code in it is not run") from None
    except (*UNREADABLE, OSError) as error:
        if isinstance(error, Damaged) or (isinstance(error, OSError) and error.errno != errno.EINVAL):
            raise
        raise Damaged(f"{path}: {_reason(error)}") from None


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run; None where none was written yet. A damaged one is put aside and named.

    Errors: ConfigError where there are only damaged ones.
    """
    damaged = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            read(path, lazily=True)
        except Damaged as error:
            damaged.append((path, error))
            continue
        for broken, error in damaged:
            aside = broken.with_name(broken.name + ".damaged")
            broken.replace(aside)
            log.warning("damaged checkpoint, put aside as %s: %s; going on from %s instead", aside.name, error, path)
        return path
    if damaged:
        told = "; ".join(str(error) for _, error in damaged)
        raise ConfigError(f"no checkpoint is whole: {told}; type another output_dir=... to start anew")
    return None
