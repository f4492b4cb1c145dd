"""The command line of a sweep: which keys vary, how many jobs there are, what is refused, how to type it again."""

import logging
import math
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from omegaconf import DictConfig, OmegaConf

from lightning_dpo.config.request import Request
from lightning_dpo.config.typed import quoted
from lightning_dpo.errors import ConfigError, OutOfTime
from lightning_dpo.run.signals import Interrupted

log = logging.getLogger(__name__)

NOT_IN_SWEEP = {
    "output_dir": "would put all jobs into one folder; type sweep_name=... or hydra.sweep.dir=...",
    "run_name": "would give all jobs one name; they are named by their overrides; type sweep_name=... for the sweep",
}
"""Keys that a sweep refuses, and why."""


def refuse_in_sweep(typed: list[str], launcher: str) -> None:
    """Errors: ConfigError for an override or launcher that does not work in a sweep."""
    for override in typed:
        key, _, value = override.lstrip("+").partition("=")
        if key in NOT_IN_SWEEP:
            raise ConfigError(f"{key}=... in a sweep {NOT_IN_SWEEP[key]}")
        if key == "resume" and value not in ("auto", "never"):
            raise ConfigError(f"{override} in a sweep would start every job from one checkpoint; type resume=auto")
    if launcher == "submitit_slurm" and shutil.which("sbatch") is None:
        raise ConfigError(
            "launcher=submitit_slurm: sbatch is not installed here; start the sweep on a login node of the cluster, "
            "or type launcher=submitit_local or launcher=joblib"
        )


def _refuse_without_sweep(typed: list[str]) -> None:
    """Errors: ConfigError for a key that a single run would ignore."""
    for override in typed:
        if override.lstrip("+").partition("=")[0] in ("sweep_name", "launcher"):
            raise ConfigError(f"{override} without a sweep; type -m, with several values for a key: -m beta=0.1,0.5")


def parsed(config: DictConfig) -> list[Override]:
    """The overrides of the configuration and of the command line; the last one of each key."""
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    texts = [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]
    return list({o.key_or_group: o for o in OverridesParser.create().parse_overrides(texts)}.values())


def varied(overrides: Sequence[Override]) -> set[str]:
    return {o.key_or_group for o in overrides if o.is_sweep_override()}


def grid_size(overrides: Sequence[Override], config: DictConfig) -> int | None:
    """The size of the grid; None for a search or a glob, whose size is not known yet."""
    grid = config.hydra.runtime.choices["hydra/sweeper"] == "basic"
    if not grid or any(o.value_type == ValueType.GLOB_CHOICE_SWEEP for o in overrides):
        return None
    return math.prod(len(list(o.sweep_string_iterator())) for o in overrides if o.is_sweep_override())


def typed_line(*more: str) -> str:
    """The command as it was typed, with further overrides directly after the typed ones, as argparse requires."""
    program = sys.argv[0] if sys.argv[0].startswith("lightning-dpo") else "python -m lightning_dpo.train"
    arguments = sys.argv[1:]
    typed = get_args_parser().parse_args(arguments).overrides
    places = [i for i in range(len(arguments)) if typed and arguments[i : i + len(typed)] == typed]
    at = places[-1] + len(typed) if places else 0
    return f"{program} {shlex.join([*arguments[:at], *more, *arguments[at:]])}"


def resuming_command(request: Request) -> str:
    """The command that resumes a single run: as typed, with the run's folder if its name was generated."""
    named = any(override.lstrip("+").startswith("output_dir=") for override in request.overrides)
    return typed_line(*(() if named else (f"output_dir={quoted(request.cfg.output_dir)}",)))


@contextmanager
def without_sweep(request: Request) -> Iterator[None]:
    """Around a single run: refuse what only a sweep can honour, print the command that resumes a stopped run, and log a
    failure."""
    _refuse_without_sweep(request.overrides)
    try:
        yield
    except (Interrupted, OutOfTime):
        print(f"stopped; continue with: {resuming_command(request)}", flush=True)
        raise
    except Exception:
        log.info("the run failed", exc_info=True)  # for train.log; the command prints it
        raise
