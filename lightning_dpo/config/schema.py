"""The top-level keys of a configuration and their types; which keys are paths, and which ones the run itself sets."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_dpo.config.suggest import key_hint, keys_of
from lightning_dpo.config.typed import readable
from lightning_dpo.errors import ConfigError
from lightning_dpo.run.identity import FILES, NO_FILES
from lightning_dpo.signatures import ArgumentError, check_arguments, leaves, nodes

Name = str | float


@dataclass(frozen=True)
class TopLevel:
    """Keys with a default here may be absent. `scoring`, `nonfinite`, `warn_kl` and `beta` are checked by the signature
    that receives them."""

    seed: Annotated[int, "[0, 4294967296)"]  # the range of NumPy's seeds
    run_name: Name
    output_dir: Path
    resume: Literal["auto", "never"] | Path
    resume_override: bool
    checkpoint: dict
    export: dict
    scoring: object
    nonfinite: object
    warn_kl: object
    objective: str
    sweep_name: Name | None = None
    beta: object = None
    model: dict | None = None
    data: dict | None = None
    loss: dict | None = None
    optimizer: dict | None = None
    scheduler: dict | None = None
    trainer: dict | None = None
    reference: dict | None = None
    samples: dict | None = None
    logger: dict | None = None
    callbacks: dict | None = None


KEYS = tuple(field.name for field in fields(TopLevel))

FILLED = {
    "data": ("tokenizer",),
    "loss": ("logps",),
    "optimizer": ("params",),
    "scheduler": ("optimizer",),
    "samples": ("output_dir",),
    "trainer": ("plugins",),
    "checkpoint": ("folder",),
    "export": ("policy", "tokenizer", "folder", "card", "stop_ids"),
}
"""Arguments of what a group builds that the run itself passes."""

NEEDED_PATHS = ("output_dir", "hydra.sweep.dir")
DIRS = ("cache_dir", "save_dir", "root_dir", "default_root_dir", "dirpath", "log_dir")
"""Arguments that name a folder."""
BEFORE_RUN = ("output_dir", "hydra.sweep.dir", "resume")
"""Paths in which `~` is expanded here. Others keep theirs until they are opened, and a run its identity in any home."""


def complete(cfg: DictConfig) -> None:
    """Called when Hydra has composed a configuration, before it makes a folder: expand `~` where Hydra itself or the
    run folder reads it. Errors: ConfigError for a missing or an unknown top-level key, and for an empty path."""
    raw: Any = OmegaConf.to_container(cfg, resolve=False)
    _check_keys(raw, cfg)
    refuse_empty(raw)
    values = leaves(raw)
    for key in BEFORE_RUN:
        path = values.get(key)
        if isinstance(path, str) and path.startswith("${"):
            path = _resolved(cfg, key)
        if isinstance(path, str) and path.startswith("~"):
            OmegaConf.update(cfg, key, os.path.expanduser(path))
    params = OmegaConf.select(cfg, "hydra.sweeper.params") or {}
    for key, value in params.items():
        if isinstance(value, str):
            params[key] = readable(f"={value}")[1:]


def _resolved(cfg: DictConfig, key: str) -> Any:
    try:
        return OmegaConf.select(cfg, key)
    except OmegaConfBaseException:  # reported when the run reads it
        return None


def _check_keys(raw: Mapping[str, Any], cfg: DictConfig) -> None:
    """A key of one's own is accepted if another value takes it, as in `${name}`, even if that one is overridden."""
    if lacking := [field.name for field in fields(TopLevel) if field.default is MISSING and field.name not in raw]:
        raise ConfigError(f"{lacking[0]}: a run needs it; leave out ~{lacking[0]}")
    for name in [name for name in raw if name not in (*KEYS, "hydra")]:
        taken = re.compile(rf"\$\{{{re.escape(str(name))}[.\[}}]")
        if any(map(taken.search, (str(raw), *(text for _, text in _files(cfg))))):
            continue
        if name in cfg.hydra.runtime.choices:
            raise ConfigError(
                f"{name}={cfg.hydra.runtime.choices[name]}: its keys are not at the top level; write "
                "`# @package _global_` as the first line of its file"
            )
        known = [*KEYS, *(key for key in keys_of({k: v for k, v in raw.items() if k in KEYS}) if "." in key)]
        hint = key_hint(str(name), str(raw[name]), known)
        raise ConfigError(f"{_where(str(name), cfg)}: no such key; {hint}")


def _where(name: str, cfg: DictConfig) -> str:
    """A top-level key as it was typed, or with the file and line that set it."""
    for override in cfg.hydra.overrides.task:
        if override.lstrip("+").partition("=")[0].split(".")[0] == name:
            return override
    for path, text in _files(cfg):
        for number, line in enumerate(text.splitlines(), 1):
            if re.match(rf"['\"]?{re.escape(name)}['\"]?\s*:", line):
                return f"{path}:{number}: {name}"
    return name


def _files(cfg: DictConfig) -> Iterator[tuple[Path, str]]:
    """The chosen files of a configuration, and their texts."""
    chosen = [f"{group}/{choice}" for group, choice in cfg.hydra.runtime.choices.items()]
    for source in cfg.hydra.runtime.config_sources:
        for path in (Path(source.path, f"{name}.yaml") for name in (cfg.hydra.job.config_name, *chosen)):
            if path.is_file():
                yield path, path.read_text(encoding="utf-8")


def refuse_empty(plain: Mapping[str, Any]) -> None:
    """Errors: ConfigError for an empty text where a file or a folder is named."""
    for key, value in nodes(plain):
        last = key.rpartition(".")[2]
        named = any(key == name or key.startswith(f"{name}.") for name in FILES) and last not in NO_FILES
        empty = isinstance(value, str) and not value.strip() and (named or last in DIRS or key in BEFORE_RUN)
        if empty or (value is None and key in NEEDED_PATHS):
            raise ConfigError(f"{key}={'' if empty else 'null'}: it names no file or folder; type {key}=PATH")


def check_top_level(plain: Mapping[str, Any]) -> None:
    """Errors: ConfigError for a top-level key with a value of another type, or an argument that the run itself sets."""
    try:
        check_arguments(TopLevel, {key: plain[key] for key in KEYS if key in plain})
    except ArgumentError as error:
        shown = f"{error.name}={plain[error.name]}" if error.name in plain else error.name
        raise ConfigError(f"{shown}: {error.message}") from None
    for key, _ in nodes({group: plain.get(group) or {} for group in FILLED}):
        group, last = key.split(".")[0], key.rpartition(".")[2]
        if last in FILLED[group] and (key.count(".") == 1 or group == "loss"):  # a loss may be a sum of others
            raise ConfigError(f"{key}: the run sets it; leave it out")
