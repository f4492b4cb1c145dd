"""What a sweep's command says: which keys vary, how many jobs that makes, and what cannot be together."""

import re
import shlex
import shutil
import sys
from collections.abc import Sequence

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from omegaconf import DictConfig, OmegaConf

from lightning_dpo.config.request import Request
from lightning_dpo.errors import ConfigError

OF_ONE_JOB = {
    "output_dir": "would put every job into one folder; type sweep_name=... or hydra.sweep.dir=...",
    "run_name": "would give every job one name; jobs are named by their overrides; type sweep_name=... for all of them",
}
"""Keys that a sweep refuses, and why."""


def refuse_in_sweep(typed: list[str], launcher: str) -> None:
    """Errors: ConfigError for what a sweep would ignore or spoil, or cannot do here."""
    for key, reason in OF_ONE_JOB.items():
        if any(override.lstrip("+").startswith(f"{key}=") for override in typed):
            raise ConfigError(f"{key}=... in a sweep {reason}")
    for override in typed:
        if override.startswith("resume=") and override not in ("resume=auto", "resume=never"):
            raise ConfigError(f"{override} in a sweep would start every job from one checkpoint; type resume=auto")
    if launcher == "submitit_slurm" and shutil.which("sbatch") is None:
        raise ConfigError(
            "launcher=submitit_slurm: there is no sbatch here; type it on a login node of the cluster, "
            "or type launcher=submitit_local or launcher=joblib"
        )


def refuse_without_sweep(typed: list[str]) -> None:
    """Errors: ConfigError for a key that means nothing to a single run."""
    for override in typed:
        if override.lstrip("+").partition("=")[0] in ("sweep_name", "launcher"):
            raise ConfigError(f"{override} without a sweep; type -m, with several values for a key: -m beta=0.1,0.5")


def parsed(config: DictConfig) -> list[Override]:
    """What varies and what does not, the last word on each key only."""
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    texts = [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]
    return list({o.key_or_group: o for o in OverridesParser.create().parse_overrides(texts)}.values())


def varied(overrides: Sequence[Override]) -> set[str]:
    return {o.key_or_group for o in overrides if o.is_sweep_override()}


def jobs_of(overrides: Sequence[Override], config: DictConfig) -> int | None:
    """The size of the grid; None for a search or a glob, which say it themselves."""
    grid = config.hydra.runtime.choices["hydra/sweeper"] == "basic"
    if not grid or any(o.value_type == ValueType.GLOB_CHOICE_SWEEP for o in overrides):
        return None
    total = 1
    for override in overrides:
        if override.is_sweep_override():
            total *= len(list(override.sweep_string_iterator()))
    return total


def quoted(value: str) -> str:
    r"""A text as Hydra reads it again on its command line.

    >>> quoted("outputs/a-1"), quoted("my runs/it's, b\\")
    ('outputs/a-1', "'my runs/it\\'s, b\\\\'")
    """
    if re.fullmatch(r"[\w./:-]+", value, re.ASCII):
        return value
    inside = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"'{inside}'"


def typed_line(*more: str) -> str:
    """What was typed, with further overrides beside those that it has: apart from them no parser would take them."""
    program = sys.argv[0] if sys.argv[0].startswith("lightning-dpo") else "python -m lightning_dpo.train"
    arguments = sys.argv[1:]
    typed = get_args_parser().parse_args(arguments).overrides
    places = [i for i in range(len(arguments)) if typed and arguments[i : i + len(typed)] == typed]
    at = places[-1] + len(typed) if places else 0
    return f"{program} {shlex.join([*arguments[:at], *more, *arguments[at:]])}"


def resuming_command(request: Request) -> str:
    """What resumes a single run: what was typed, with the run's folder where its name is the time."""
    named = any(override.lstrip("+").startswith("output_dir=") for override in request.overrides)
    return typed_line(*(() if named else (f"output_dir={quoted(request.cfg.output_dir)}",)))
