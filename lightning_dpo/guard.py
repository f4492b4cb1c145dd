"""Hydra acts on its own part of a configuration before a run begins: it is checked where Hydra composes it."""

import inspect
from functools import wraps
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig, OmegaConf

from lightning_dpo import allow
from lightning_dpo.errors import ConfigError
from lightning_dpo.redact import redact
from lightning_dpo.resolvers import slug


def install() -> None:
    """Refuse, in this process from now on, what a composed configuration would run: logging, callbacks and the launcher
    are set up before the first line of a run, so Hydra offers no later place for it."""
    compose = ConfigLoaderImpl.load_configuration
    if hasattr(compose, "__wrapped__"):
        return

    @wraps(compose)
    def checked(*args: Any, **kwargs: Any) -> DictConfig:
        cfg = compose(*args, **kwargs)
        given = inspect.signature(compose).bind(*args, **kwargs).arguments["overrides"]
        _check_typed(cfg, given)
        check(cfg)
        return cfg

    ConfigLoaderImpl.load_configuration = checked  # type: ignore[method-assign]


def _check_typed(cfg: DictConfig, given: list[str]) -> None:
    """What counts as typed is what was typed: Hydra adds it to a list that may stand in a file."""
    counted: Any = OmegaConf.to_container(cfg.hydra.overrides, resolve=False)
    known = [*given, *(o for o in counted["hydra"] if o.startswith("hydra.mode="))]
    if smuggled := [o for o in (*counted["task"], *counted["hydra"]) if o not in known]:
        raise ConfigError(f"hydra.overrides: {redact(smuggled[0])} stands in a file, and nobody typed it; take it out")


def check(cfg: DictConfig) -> None:
    """Errors: ConfigError for a part of `hydra:` that would run another's code or log outside the run's folder."""
    plain: Any = OmegaConf.to_container(cfg.hydra, resolve=False)
    for name in plain["job"].get("env_copy") or ():
        plain["job"]["env_set"].pop(name, None)  # this very environment
    allow.check({"hydra": plain})
    name = str(plain["job"].get("name"))
    if slug(name) != name:
        raise ConfigError(f"hydra.job.name={name!r}: a name of letters, digits and dashes; it names the log file")
