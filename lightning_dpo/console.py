"""The terminal: what a command prints, and its exit code."""

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console
from rich.text import Text

from lightning_dpo.errors import EXIT_CODES

log = logging.getLogger(__name__)
console = Console(highlight=False, markup=False)  # paths and texts may hold square brackets

NOISY = ("torchao", "torch.utils._pytree", "matplotlib")
"""Loggers that warn at every start where torchao is installed, or where the home folder is read-only."""

IGNORED = (
    ".*LeafSpec.*",  # torch 2.13 about Lightning
    ".*in eval mode at the start of training.*",  # on purpose: dropout is off
    ".*does not have many workers.*",  # batches are slices of ids in memory
    ".*your dataloader is not resumable.*",  # the data module knows its position
    ".*litlogger.*",
)


def say(text: Text | str) -> None:
    """Print a line, and write it to the log."""
    console.print(text, soft_wrap=True)
    log.info("%s", text.plain if isinstance(text, Text) else text)


def quiet_imports() -> None:
    """Silence warnings of libraries that are imported."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)


def quiet() -> None:
    """Silence notices of libraries that ask nothing of the reader."""
    import transformers

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).handlers.clear()  # Hydra's handler prints the same lines
    os.environ.setdefault("WANDB_SILENT", "true")
    transformers.logging.disable_progress_bar()
    for message in IGNORED:
        warnings.filterwarnings("ignore", message=message)


def end_at_broken_pipe() -> NoReturn:
    """End quietly when the reader of `--help | head` is gone. SystemExit, because logging prints any Exception."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)


@contextmanager
def exit_codes(*user_errors: type[Exception]) -> Iterator[None]:
    """Around a command: an error that a person can act on becomes one line and its exit code; any other error becomes a
    traceback and 1.

    Args:
        user_errors: further types that a person can act on; they exit with 2.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        end_at_broken_pipe()
    except (*EXIT_CODES, *user_errors) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 2))
    except Exception:
        traceback.print_exc()
        sys.exit(1)
