"""Tokenizers: what encodes a text is the file tokenizer.json.

transformers builds some tokenizers from the vocabulary of tokenizer.json and a class's own normalizer, pre-tokenizer
and decoder. With `tokenizer_class: GPT2Tokenizer` over another pattern for splitting, a text gets other ids than those
that the model was trained on. The file is the record of that training, and what other programs read, so it decides how
a text becomes ids. tokenizer_config.json adds what the file does not hold: names of special tokens, chat template.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils.hub import cached_file

from lightning_dpo.errors import ConfigError
from lightning_dpo.models.paths import HUB_ID, check_path, reading

log = logging.getLogger(__name__)

FILE = "tokenizer.json"
NO_IDS = ("trim_offsets", "pair")
"""Settings that change no id of a single text."""


@dataclass(frozen=True)
class TokenizerOptions:
    """Keys of `model` that are not arguments of the function that loads it.

    Args:
        tokenizer: a folder or hub id; None: the model's own.
        resize_embeddings: add rows for ids of the tokenizer that the model has no embedding for.
    """

    tokenizer: str | None = None
    resize_embeddings: bool = False

    @classmethod
    def keys(cls, node: Mapping[str, Any]) -> dict[str, Any]:
        """Those keys of a `model` node."""
        return {field.name: node[field.name] for field in fields(cls) if field.name in node}

    def load(self, path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
        """The tokenizer of a model with this path."""
        if self.tokenizer is None:
            return load_tokenizer(path, trust_remote_code)
        return load_tokenizer(self.tokenizer, trust_remote_code, "model.tokenizer")


def load_tokenizer(
    path: str | Path, trust_remote_code: bool = False, key: str = "model.path"
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id. It gives a text the ids of its tokenizer.json, if there is one.

    Where the class that transformers chooses differs from the file, PreTrainedTokenizerFast takes its place, which
    reads all of the file, and a warning names both. It gets the special tokens of that class. A class from outside of
    transformers, which `trust_remote_code` runs, stays: its code is part of the model.

    Errors: ConfigError for a tokenizer that cannot be loaded, or that differs from its file all the same.
    """
    found = check_path(path, key)
    with reading("tokenizer", path, key):
        tokenizer = AutoTokenizer.from_pretrained(found, trust_remote_code=trust_remote_code)
        file = tokenizer_file(found)
        if file is None or not (differs := _differences(tokenizer, file)):
            return tokenizer
        name, parts = type(tokenizer).__name__, " and ".join(differs)
        log.warning("%s=%s: %s has another %s than %s; the file's is used", key, path, name, parts, FILE)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(found, **tokenizer.special_tokens_map)
    if differs := _differences(tokenizer, file):
        raise ConfigError(
            f"{key}={path}: tokenizer_config.json gives the tokenizer another {' and '.join(differs)} than {FILE}; "
            "remove that setting, or save what AutoTokenizer loads to a folder and type model.tokenizer=FOLDER, "
            "whichever the model was trained with"
        )
    return tokenizer


def tokenizer_file(path: str | Path) -> Path | None:
    """tokenizer.json of a folder, or of a hub id in the cache; None if there is none."""
    if path and Path(path).is_dir():
        file = Path(path, FILE)
        return file if file.is_file() else None
    if not HUB_ID.fullmatch(str(path)):  # built in Python, or from a folder that is gone
        return None
    options = {"local_files_only": True, "_raise_exceptions_for_missing_entries": False}
    cached = cached_file(str(path), FILE, _raise_exceptions_for_connection_errors=False, **options)
    return None if cached is None else Path(cached)


def _differences(tokenizer: Any, file: Path) -> list[str]:
    """The parts in which a tokenizer encodes or decodes otherwise than its file; tokens added to it are none."""
    if not _is_fast(tokenizer):
        return []
    own, filed = (json.loads(t.to_str()) for t in (tokenizer.backend_tokenizer, Tokenizer.from_file(str(file))))
    parts = [part for part in _PARTS if _plain(own[part]) != _plain(filed[part])]
    known = {token["id"]: token["content"] for token in own["added_tokens"]}
    lost = [token for token in filed["added_tokens"] if known.get(token["id"]) != token["content"]]
    return parts + ["set of added tokens"] * bool(lost)


def _is_fast(tokenizer: Any) -> bool:
    """Whether it is a tokenizer of the library tokenizers, in a class of transformers."""
    return type(tokenizer).__module__.startswith("transformers.") and hasattr(tokenizer, "backend_tokenizer")


_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "model")


def _plain(part: Any) -> Any:
    """A part of tokenizer.json without what changes no id: empty settings, and a template that adds nothing."""
    if not isinstance(part, dict):
        return [_plain(item) for item in part] if isinstance(part, list) and len(part) < 100 else part
    if part.get("type") == "TemplateProcessing" and not part["special_tokens"]:
        return None
    return {k: v if k == "vocab" else _plain(v) for k, v in part.items() if v not in (None, "") and k not in NO_IDS}


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer. tokenizer.json is the original, byte for byte, if it gives this tokenizer again: it does not
    after tokens were added."""
    content = _content(tokenizer)
    tokenizer.save_pretrained(folder)
    original, target = tokenizer_file(tokenizer.name_or_path), folder / FILE
    if original is None or not _is_fast(tokenizer):
        return
    saved = target.read_bytes()
    shutil.copyfile(original, target)
    if _content(type(tokenizer).from_pretrained(folder)) != content:
        target.write_bytes(saved)


def _content(tokenizer: Any) -> str | None:
    """What a tokenizer saves, without settings of earlier calls, which a resumed run may not have made."""
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is None:
        return None
    backend.no_padding()
    backend.no_truncation()
    return backend.to_str()


def largest_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The largest id that a text can get."""
    return max(tokenizer.get_vocab().values())
