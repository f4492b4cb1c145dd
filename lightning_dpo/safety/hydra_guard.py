"""Hydra acts on its own part of a configuration before a run begins, so that part is checked when Hydra composes it."""

import inspect
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_dpo.errors import ConfigError
from lightning_dpo.files import slug
from lightning_dpo.safety import targets
from lightning_dpo.safety.secrets import NAME, redact, refuse_secret_values
from lightning_dpo.signatures import nodes

BUILT = r"hydra\.(callbacks|job|job_logging|hydra_logging|launcher|sweeper)(\.|$)"
"""Keys that Hydra builds and calls."""
KNOWN = ("${parallel_jobs:}", "${hydra.job.name}", "${hydra.sweep.dir}/.submitit/%j")
"""Interpolations of the launchers."""
COMMAND = "LIGHTNING_DPO_COMMAND"
"""Environment variable of the command `train` and its workers, which compose only this project's configurations."""


@contextmanager
def command() -> Iterator[None]:
    """Check every configuration composed inside the block, from whatever folder it comes (`--config-path`)."""
    previous, os.environ[COMMAND] = os.environ.get(COMMAND), "train"
    try:
        yield
    finally:
        del os.environ[COMMAND]
        if previous is not None:
            os.environ[COMMAND] = previous


def install(
    conf: str, prepare: Callable[[], None], readable: Callable[[str], str], complete: Callable[[DictConfig], None]
) -> None:
    """From now on, check this project's configurations whenever this process composes one. Hydra sets up logging,
    callbacks and the launcher before the first line of a run, so there is no later place for it. Configurations of
    other Hydra applications pass untouched.

    Args:
        conf: the folder of this project's configurations.
        prepare: called before one of those is composed.
        readable: an override as it is typed -> as Hydra reads it.
        complete: called with each composed configuration that has passed.
    """
    compose, find = ConfigLoaderImpl.load_configuration, ConfigRepository.initialize_sources
    if hasattr(compose, "__wrapped__"):
        return

    def is_ours(path: ConfigSearchPath) -> bool:
        main = [str(e.path).removeprefix("file://") for e in path.get_path() if e.provider == "main"]
        return COMMAND in os.environ or conf in main

    @wraps(compose)
    def checked(self: ConfigLoaderImpl, *args: Any, **kwargs: Any) -> DictConfig:
        call = inspect.signature(compose).bind(self, *args, **kwargs)
        arguments = call.arguments
        if not is_ours(self.config_search_path) or arguments["config_name"] is None:  # None: `--hydra-help`
            return compose(self, *args, **kwargs)
        prepare()
        arguments["overrides"] = [readable(override) for override in arguments["overrides"]]
        try:
            cfg = compose(*call.args, **call.kwargs)
        except KeyError as error:
            if not _in_environ(error):
                raise
            raise ConfigError(f"hydra.job.env_copy: {error} is not set in the environment") from None
        _check_typed(cfg, arguments["overrides"])
        check(cfg)
        _check_secrets(cfg)
        complete(cfg)
        return cfg

    @wraps(find)
    def known(self: ConfigRepository, config_search_path: ConfigSearchPath) -> None:
        if is_ours(config_search_path):
            _check_search_path(config_search_path)
        find(self, config_search_path)

    ConfigLoaderImpl.load_configuration = checked  # type: ignore[method-assign]
    ConfigRepository.initialize_sources = known  # type: ignore[method-assign]


def _check_search_path(search_path: ConfigSearchPath) -> None:
    for path in (element.path or "" for element in search_path.get_path()):
        package = path.removeprefix("pkg://").replace("/", ".")
        if path.startswith("pkg:") and not targets.within(package, (*targets.HYDRA, *targets.OURS, *targets.own())):
            remedy = f"type file://FOLDER, or set {targets.ALLOW}={package} in the environment"
            raise ConfigError(f"hydra.searchpath: {path}: it would be imported; {remedy}")


def _in_environ(error: KeyError) -> bool:
    """Whether os.environ raised it, as for a name in `hydra.job.env_copy`."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place is not None and place.tb_frame.f_globals.get("__name__") == "os"


def _check_typed(cfg: DictConfig, typed: list[str]) -> None:
    """Only what was typed may be in Hydra's list of overrides, which a file could extend."""
    counted: Any = OmegaConf.to_container(cfg.hydra.overrides, resolve=False)
    known = [*typed, *(o for o in counted["hydra"] if o.startswith("hydra.mode="))]
    if smuggled := [o for o in (*counted["task"], *counted["hydra"]) if o not in known]:
        raise ConfigError(f"hydra.overrides: {redact(smuggled[0])} is in a file and was not typed; remove it")


def check(cfg: DictConfig) -> None:
    """Errors: ConfigError for a part of `hydra:` that would run foreign code or write outside the run's folder."""
    plain: Any = OmegaConf.to_container(cfg.hydra, resolve=False)
    _check_folders(plain)
    for name in plain["job"].get("env_copy") or ():
        if NAME.search(str(name)):
            raise ConfigError(f"hydra.job.env_copy: {name} would be written to a file; every process has it already")
    for key in plain["sweeper"].get("params") or ():
        if not re.fullmatch(r"[+~]*[\w./@-]+", str(key)):
            raise ConfigError(f"hydra.sweeper.params: {key!r} is no key")
    for name in plain["job"].get("env_copy") or ():
        plain["job"]["env_set"].pop(name, None)  # this very environment
    for path, node in nodes({"hydra": plain}):
        if isinstance(node, str) and "${" in node and re.match(BUILT, path) and node not in KNOWN:
            # The first is checked in targets.check; the second was typed, and becomes a name.
            if not path.endswith((".filename", "hydra.job.override_dirname")):
                raise ConfigError(
                    f"{path}={redact(node)}: an interpolation cannot be checked here; write the value out"
                )
    targets.check({"hydra": plain})
    name = str(plain["job"].get("name"))
    if slug(name) != name:
        raise ConfigError(
            f"hydra.job.name={name!r}: a name of letters, digits and dashes is allowed, because it names the log file"
        )


SLUG = r"\$\{slug:([^{}]|\{[^{}]*\})*\}"
"""An interpolation that gives one safe name, whatever its argument."""


def _check_folders(plain: dict[str, Any]) -> None:
    """Hydra creates its folders before a run begins."""
    if (folder := plain["run"]["dir"]) != "${output_dir}":
        raise ConfigError(f"hydra.run.dir={redact(str(folder))}: type output_dir=...")
    subdir, inner = str(plain["sweep"]["subdir"]), plain.get("output_subdir")
    if slug(subdir) != subdir and not re.fullmatch(SLUG, subdir):
        message = "a sweep is one level of folders with safe names; type"
        raise ConfigError(
            f"hydra.sweep.subdir={redact(subdir)}: {message} 'hydra.sweep.subdir=\"${{slug:a-${{beta}}}}\"'"
        )
    if inner is not None and slug(inner) != inner:
        raise ConfigError(f"hydra.output_subdir={redact(str(inner))}: a name of letters, digits and dashes, or null")


def _check_secrets(cfg: DictConfig) -> None:
    """Hydra writes the composed configuration to files and names folders by it before a run begins."""
    raw: Any = OmegaConf.to_container(cfg, resolve=False)
    for path, node in sorted(nodes(raw), key=lambda found: found[0].startswith("hydra.")):
        for name in re.findall(r"oc\.env:\s*([\w$]+)", node) if isinstance(node, str) else ():
            if NAME.search(name) or "$" in name:
                reason = "would be written to every file; secrets are read from the environment itself"
                raise ConfigError(f"{path}: ${{oc.env:{name}}} {reason}")
    for name in raw.keys() - {"hydra"}:
        try:
            node = cfg[name]
            plain = {name: OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node}
        except OmegaConfBaseException:  # a value is missing, and no run will begin
            plain = {name: raw[name]}
        refuse_secret_values(plain)
