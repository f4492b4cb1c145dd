"""Folders and hub ids of models and tokenizers, and errors in one line for what cannot be had from them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from lightning_dpo.errors import ConfigError

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
BROKEN = (OSError, ValueError, KeyError, TypeError, ImportError, SafetensorError)
"""Errors of transformers for files that are missing, damaged, need a package, or cannot be had from the hub."""

NEEDED = {
    "configuration": "config.json of a transformers model",
    "weights": "*.safetensors",
    "tokenizer": "tokenizer.json, or vocabulary files and a tokenizer_config.json that names their tokenizer_class",
}
"""What a folder must hold, for messages."""


def check_path(path: str | Path, key: str = "model.path") -> str:
    """The path, if it is a folder or can only be a hub id.

    Errors: ConfigError for a mistyped folder. As a hub id it would cost a minute of retries.
    """
    text = str(path)
    folder = Path(text).expanduser()
    if folder.is_dir():
        return str(folder)
    if not HUB_ID.fullmatch(text) or text.startswith(".") or ("/" in text and folder.parent.is_dir()):
        needed = NEEDED["tokenizer" if key == "model.tokenizer" else "configuration"].split(",")[0].split()[0]
        raise ConfigError(f"{key}={text}: no such folder; type a folder with {needed} or a hub id like org/name")
    return text


@contextmanager
def reading(what: str, path: str | Path, key: str) -> Iterator[None]:
    """Around the reading of a model's files.

    Args:
        what: a key of NEEDED.

    Errors: ConfigError in place of the errors of transformers: the key, their first line, and what to type.
    """
    try:
        yield
    except Exception as error:
        # The library tokenizers raises plain Exception for a file that it cannot parse.
        if isinstance(error, ConfigError) or not (isinstance(error, BROKEN) or type(error) is Exception):
            raise
        named = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        reason = (str(error).strip().splitlines() or [""])[0].rstrip(" .:").removesuffix(" from one of")
        remedy = f"type a folder with {NEEDED[what]}"
        if not Path(path).expanduser().is_dir():
            remedy = f"check the name and the network, or {remedy}"
        if what == "tokenizer" and key == "model.path":
            remedy += "; model.tokenizer=PATH takes the tokenizer from elsewhere"
        raise ConfigError(f"{key}={path}: the {what} cannot be loaded ({named}{reason}); {remedy}") from error
