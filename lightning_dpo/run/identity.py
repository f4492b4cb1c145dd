"""The identity of a run: its settings and the contents of the files that they name.

They decide whether a run may resume, whether a sweep skips a job, and which keys a report compares.
"""

import hashlib
import importlib
import json
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from lightning_dpo.files import file_sha256, is_saved_table, matching
from lightning_dpo.safety import secrets
from lightning_dpo.signatures import leaves

PLACES = ("output_dir", "run_name", "sweep_name", "logger", "resume", "resume_override")
"""Where a run's numbers go and how it resumes. Values that other keys take from these (`${output_dir}`) are ignored."""

MAY_CHANGE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (*PLACES, "hydra", "trainer.default_root_dir", "checkpoint.every_n_steps"), ("resume", "sweep", "report")
    ),
    "reference.cache_dir": ("resume", "sweep", "report"),
    "objective": ("resume", "report"),
    **dict.fromkeys(
        (f"trainer.{n}" for n in ("max_time", "enable_progress_bar", "enable_model_summary")), ("resume", "sweep")
    ),
    **dict.fromkeys((f"data.{n}" for n in ("num_workers", "num_proc", "cache_dir")), ("resume", "sweep")),
    **dict.fromkeys((f"data.{n}" for n in ("report", "report_plot", "report_ches")), ("resume", "sweep")),
}
"""Keys (and all below them) that change no number, and where another value of them still means the same run."""

ADDED: dict[str, Any] = {
    **{"export.dtype": None, "checkpoint.best": None, "checkpoint.mode": "auto"},
    **{"data.chat_template_kwargs": None, "data.on_template_loss": "stop"},
    **{f"data.columns.{name}": name for name in ("system", "history", "input", "tools", "chat_template_kwargs")},
    **{"data.columns.label": None, "data.label": None, "data.wrap": None, "data.join": None},
    **{"model.tokenizer": None, "model.resize_embeddings": False},
}
"""Keys that runs of older versions lack, and the value that keeps their behaviour."""

CHANGED_DEFAULTS: dict[tuple[str, Any, Any], tuple[str, str, str]] = {
    ("scheduler.warmup_steps", 0.1, 0): ("scheduler.name", "constant", "scheduler=constant has no warm-up since 0.2.0"),
}
"""(key, old default, new default): a key and its value in both runs for which the default changed, and the change."""

FILES = ("model.path", "model.tokenizer", "reference.path", "data.train", "data.val", "data.chat_template")
"""Keys that may name files or folders, at any depth below."""
DATA = ("data.train", "data.val")
"""Those that may also be globs, or folders whose files are the data."""
NO_FILES = ("weight", "subset", "split", "revision")
"""Settings of a source other than its path."""
READ = (".safetensors", ".json", ".jinja", ".model", ".txt", ".py")
"""Files that count in a folder: weights, configuration and tokenizer of a model, the state of a saved data set."""


def may_change(key: str, where: str) -> bool:
    """Whether a run with another value of the key is the same run. `where`: "resume", "sweep" or "report"."""
    return any(where in places and (key == free or key.startswith(f"{free}.")) for free, places in MAY_CHANGE.items())


def fingerprint(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as {dotted key: value}, without PLACES and secrets; with hashes of its files."""
    cfg = cfg.copy()
    with open_dict(cfg):
        for key in PLACES:
            cfg[key] = None
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    found = {key: value for key, value in leaves(plain).items() if not secrets.KEY.search(key)}
    return json.loads(json.dumps(found | content(found)))  # as it is read back


def differences(previous: Mapping[str, Any], current: Mapping[str, Any], where: str = "resume") -> list[str]:
    """The settings that make it another run, as `key old -> new`, with what to type if a default has changed. An
    unreadable file, then or now, is not a difference: the run itself reports it."""
    found = []
    for key in {**previous, **current}:
        old, new = previous.get(key, ADDED.get(key)), current.get(key)
        unread = key.endswith("(content)") and None in (old, new)
        if not (unread or may_change(key, where) or _equal(key, old, new)):
            hint = changed_default(key, previous, current)
            found.append(f"{key} {old} -> {new}{hint and f' ({hint})'}")
    return found


def changed_default(key: str, previous: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """What to type to resume a run saved under an old default; empty for any other difference."""
    for (name, old, new), (other, value, reason) in CHANGED_DEFAULTS.items():
        changed = name == key and (previous.get(key), current.get(key)) == (old, new)
        if changed and previous.get(other) == current.get(other) == value:
            return f"{reason}; type {key}={old} to resume it"
    return ""


def _equal(key: str, old: Any, new: Any) -> bool:
    """A function or class that has moved within the package is the same."""
    named = key.endswith(("_target_", "scorer")) and all(str(name).startswith("lightning_dpo.") for name in (old, new))
    return old == new or (named and _imported(old) is _imported(new) is not None)


def _imported(dotted: str) -> Any:
    module, _, name = dotted.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


def content(config: Mapping[str, Any]) -> dict[str, str]:
    """`{"<key> (content)": hash}` of each local file or folder that the configuration {dotted key: value} names.

    Hub ids and unreadable files have no hash. Nor has a stream, which may be larger than the disk.
    """
    found = {}
    for key, value in config.items():
        name = next((name for name in FILES if key == name or key.startswith(f"{name}.")), None)
        if name is None or (name == "data.train" and config.get("data.streaming")):
            continue
        parent, _, last = key.rpartition(".")
        if last in NO_FILES and f"{parent}.path" in config:
            continue
        read = _data_content if name in DATA else _content
        hashes = [digest for path in _paths(value) if (digest := read(Path(path).expanduser()))]
        if hashes:
            found[f"{key} (content)"] = " ".join(hashes)
    return found


def _paths(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for entry in value:
            yield from _paths(entry.get("path") if isinstance(entry, dict) else entry)


def _content(path: Path) -> str | None:
    try:
        if os.path.isfile(path):  # unlike Path.is_file, no error for a text longer than a path may be
            return _hash(path)
        if not os.path.isdir(path):
            return None
        inside = [p for p in path.iterdir() if p.suffix in READ and p.is_file()] + list(path.glob("*/state.json"))
        hashes = [f"{p.relative_to(path)} {_hash(p)}" for p in sorted(inside)]
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:12]
    except OSError:
        return None


def _data_content(path: Path) -> str | None:
    """As _content, also of the files of a glob, and of a folder that `datasets` has not saved."""
    try:
        if os.path.isdir(path) and not is_saved_table(path):
            inside = sorted(p.relative_to(path) for p in path.rglob("*") if p.is_file())
            hashes = [f"{p} {_hash(path / p)}" for p in inside if not any(part.startswith(".") for part in p.parts)]
        elif os.path.lexists(path) or not (hashes := [_hash(Path(p)) for p in matching(str(path))]):
            return _content(path)
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:12]
    except OSError:
        return None


def _hash(path: Path) -> str:
    stat = path.stat()
    return _sha256(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@cache
def _sha256(path: Path, *version: int) -> str:
    """Cached, so that the jobs of a sweep read a file once."""
    return file_sha256(path)[:12]
