"""Hydra acts on its own part of a configuration before a run begins: it is checked where Hydra composes it."""

import inspect
import re
from functools import wraps
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from omegaconf import DictConfig, OmegaConf

from lightning_dpo import allow
from lightning_dpo.errors import ConfigError
from lightning_dpo.redact import redact
from lightning_dpo.resolvers import slug

BUILT = r"hydra\.(callbacks|job_logging|hydra_logging|launcher|sweeper(?!\.params\.))(\.|$)"
"""What Hydra builds and calls."""
KNOWN = ("${parallel_jobs:}", "${hydra.job.name}", "${hydra.sweep.dir}/.submitit/%j")
"""Interpolations of the launchers."""


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
    find = ConfigRepository.initialize_sources

    @wraps(find)
    def known(self: ConfigRepository, config_search_path: ConfigSearchPath) -> None:
        for path in (element.path or "" for element in config_search_path.get_path()):
            package = path.removeprefix("pkg://").replace("/", ".")
            if path.startswith("pkg:") and not allow.within(package, (*allow.HYDRA, *allow.OURS, *allow.own())):
                told = f"it would be imported; type file://FOLDER, or set {allow.ALLOW}={package} in the environment"
                raise ConfigError(f"hydra.searchpath: {path}: {told}")
        find(self, config_search_path)

    ConfigRepository.initialize_sources = known  # type: ignore[method-assign]


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
    for path, node in allow.nodes({"hydra": plain}):
        if isinstance(node, str) and "${" in node and re.match(BUILT, path) and node not in KNOWN:
            if not path.endswith(".filename"):  # its form is checked below
                told = "what it stands for when Hydra acts on it cannot be checked; write the value out"
                raise ConfigError(f"{path}={redact(node)}: {told}")
    allow.check({"hydra": plain})
    name = str(plain["job"].get("name"))
    if slug(name) != name:
        raise ConfigError(f"hydra.job.name={name!r}: a name of letters, digits and dashes; it names the log file")
