"""What a configuration may name: each place takes one kind of object, and nothing else is imported or called.

A configuration may come from a stranger, and importing a module or calling a function runs code. An allow-list of
packages is not enough: `torch.hub.load` runs code too. So a `_target_` must come from a package that its place allows,
must be of the kind that is built there (a class by its base, a function by its return annotation), and must be defined
in such a package itself: `lightning_dpo.train.os.system` is refused.
"""

import importlib
import inspect
import os
import re
from types import ModuleType
from typing import Any, NamedTuple

from lightning_dpo.errors import ConfigError
from lightning_dpo.signatures import nodes

ALLOW = "LIGHTNING_DPO_ALLOW"
"""Environment variable with trusted packages, separated by commas. Their functions are allowed at every place, their
classes where the base fits."""


class AllowedTarget(NamedTuple):
    """What is allowed at a place.

    what: in words. packages: where it may come from. base: dotted path of the class that a class must derive from.
    returns: the return annotation that a function must have; None: no function is allowed.
    """

    what: str
    packages: tuple[str, ...]
    base: str | None = None
    returns: str | None = None


OURS, LIGHTNING, HYDRA = ("lightning_dpo",), ("lightning",), ("hydra", "hydra_plugins")

ALLOWED = {
    "model": AllowedTarget("lightning_dpo.models.load_model", ("lightning_dpo.models",), returns="PreTrainedModel"),
    "loss": AllowedTarget("a loss of lightning_dpo.losses", ("lightning_dpo.losses",), "torch.nn.Module", "PairLoss"),
    "loss.terms.*": AllowedTarget(
        "a loss of lightning_dpo.losses", ("lightning_dpo.losses",), "torch.nn.Module", "PairLoss"
    ),
    "optimizer": AllowedTarget(
        "a torch.optim.Optimizer of torch, transformers, bitsandbytes or torchao",
        ("torch", "transformers", "bitsandbytes", "torchao", "lightning_dpo.optim"),
        "torch.optim.Optimizer",
        "Optimizer",
    ),
    "scheduler": AllowedTarget(
        "lightning_dpo.optim.schedule or a torch.optim.lr_scheduler.LRScheduler",
        ("torch", "lightning_dpo.optim"),
        "torch.optim.lr_scheduler.LRScheduler",
        "LRScheduler",
    ),
    "data": AllowedTarget("a LightningDataModule of lightning_dpo.data", OURS, "lightning.LightningDataModule"),
    "reference": AllowedTarget("a reference of lightning_dpo.reference", OURS, "lightning_dpo.reference.Reference"),
    "samples": AllowedTarget("lightning_dpo.samples.SampleCallback", OURS, "lightning_dpo.samples.SampleCallback"),
    "samples.scorer": AllowedTarget("a scorer of lightning_dpo", OURS, returns="dict[str, list[float]]"),
    "logger.*": AllowedTarget("a Logger of Lightning", LIGHTNING, "lightning.pytorch.loggers.Logger"),
    "callbacks.*": AllowedTarget("a Callback of Lightning", LIGHTNING, "lightning.Callback"),
    "trainer": AllowedTarget("lightning.Trainer", LIGHTNING, "lightning.Trainer"),
    "trainer.strategy": AllowedTarget("a Strategy of Lightning", LIGHTNING, "lightning.pytorch.strategies.Strategy"),
    "trainer.profiler": AllowedTarget("a Profiler of Lightning", LIGHTNING, "lightning.pytorch.profilers.Profiler"),
    "trainer.plugins.*": AllowedTarget(
        "a Precision plugin of Lightning", LIGHTNING, "lightning.pytorch.plugins.Precision"
    ),
    "hydra.callbacks.*": AllowedTarget("a Callback of Hydra", (*HYDRA, *OURS), "hydra.experimental.callback.Callback"),
    "hydra.launcher": AllowedTarget("a Launcher of Hydra", HYDRA, "hydra.plugins.launcher.Launcher"),
    "hydra.sweeper": AllowedTarget("a Sweeper of Hydra", HYDRA, "hydra.plugins.sweeper.Sweeper"),
    "hydra.sweeper.sampler": AllowedTarget("a sampler of Optuna", ("optuna",), "optuna.samplers.BaseSampler"),
}
"""By place; `*` is any one name."""

DOTTED = ("samples.scorer", "hydra.sweeper.custom_search_space")
"""Places whose value is a dotted path."""

IN_THE_SHELL = {
    "hydra.job.env_set.*": "set environment variables in the shell",
    "hydra.launcher.setup": "put shell commands into the script that starts the sweep",
    "hydra.launcher.python": "the interpreter is the one that starts the sweep",
    "hydra.launcher.srun_args": "type SLURM_* variables in the shell",
    "hydra.launcher.additional_parameters": "type SBATCH_* variables in the shell",
    "hydra.sweeper.params.model.trust_remote_code": "type model.trust_remote_code=true",
    "logger.*.tracking_uri": "type MLFLOW_TRACKING_URI=... in the shell, because your token is sent there",
}
"""Keys that would run a command or send a secret away, and the remedy."""

SETTINGS = (
    *("init_timeout", "login_timeout", "console", "silent", "quiet", "show_errors", "show_info", "show_warnings"),
    *("disable_git", "disable_code", "save_code", "x_disable_stats", "x_disable_meta", "x_stats_sampling_interval"),
)
"""W&B settings that a configuration may set: no address that the key would be sent to, no program, no folder."""

LOGGING = ("logging.StreamHandler", "logging.FileHandler", "logging.NullHandler", "colorlog.ColoredFormatter")
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")


def check(cfg: dict[str, Any]) -> None:
    """Errors: ConfigError for the first node of a plain configuration that may not be built, before it is imported."""
    for path, node in nodes(cfg):
        if isinstance(node, dict) and "_args_" in node:
            raise ConfigError(f"{path}._args_: give arguments by name")
        if isinstance(node, dict) and "_target_" in node:
            allowed(node["_target_"], path, f"{path}._target_")
        if path in DOTTED and node is not None:
            allowed(node, path)
        if re.fullmatch(r"logger\.[^.]+\.settings\.[^.]+", path) and path.rpartition(".")[2] not in SETTINGS:
            raise ConfigError(
                f"{path}: set this in the shell (WANDB_...); a configuration may set {', '.join(SETTINGS)}"
            )
        if node and (reason := _first(IN_THE_SHELL, path.replace("+", "").replace("~", ""))):
            raise ConfigError(f"{path}: not allowed in a configuration, which may come from a stranger; {reason}")
        if path.startswith("hydra.launcher.") and isinstance(node, str) and not node.isprintable():
            raise ConfigError(f"{path}: found {node!r}; it becomes one line of a shell script")
        if path.startswith(("hydra.job_logging.", "hydra.hydra_logging.")):
            _check_logging(path, node)


def allowed(dotted: Any, path: str, key: str | None = None) -> Any:
    """The object of a dotted path, if it is allowed at its place.

    Args:
        path: the place. key: its name in messages, if that is another one.

    Errors: ConfigError, before anything outside the allowed packages is imported.
    """
    kind, shown = _first(ALLOWED, path), key or path
    if kind is None:
        raise ConfigError(f"{shown}={dotted}: nothing is built here; remove it")
    trusted = own()
    message = f"{shown}={dotted}: {kind.what} is allowed here"
    if not isinstance(dotted, str) or not within(dotted, kind.packages + trusted):
        root = str(dotted).partition(".")[0]
        raise ConfigError(f"{message}; to trust a package of your own, set {ALLOW}={root} in the environment")
    try:
        found = _walk(dotted, kind.packages + trusted)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{shown}={dotted}: {error}") from None
    if not _fits(found, kind, trusted):
        raise ConfigError(f"{message}; this is {_described(found)}")
    return found


def _walk(dotted: str, packages: tuple[str, ...]) -> Any:
    """Import as Hydra does, but only modules of these packages: an attribute of a module comes before a submodule."""
    first, *rest = dotted.split(".")
    if not all(part.isidentifier() for part in (first, *rest)) or not rest:
        raise ImportError(f"{dotted!r} is not a dotted path such as package.module.function")
    found: Any = importlib.import_module(first)
    for number, part in enumerate(rest):
        if not isinstance(found, ModuleType) or not _related(found.__name__, packages):
            raise AttributeError(f"{'.'.join((first, *rest[:number]))} is no module of {' or '.join(packages)}")
        try:
            found = getattr(found, part)
        except AttributeError as error:
            if number == len(rest) - 1:
                raise AttributeError(f"{found.__name__} has no {part}") from error
            found = importlib.import_module(".".join((first, *rest[: number + 1])))
    return found


def _fits(found: Any, kind: AllowedTarget, own: tuple[str, ...]) -> bool:
    home = getattr(found, "__module__", None) or ""
    if inspect.isclass(found):
        return kind.base is not None and issubclass(found, _class(kind.base)) and within(home, kind.packages + own)
    if not inspect.isfunction(found):
        return False
    annotation = inspect.formatannotation(inspect.signature(found).return_annotation)
    ours = kind.returns is not None and annotation.endswith(kind.returns) and within(home, kind.packages)
    return ours or within(home, own)


def _class(dotted: str) -> type:
    module, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(module), name)


def own() -> tuple[str, ...]:
    """The packages that the environment names."""
    return tuple(name.strip() for name in os.environ.get(ALLOW, "").split(",") if name.strip())


def within(name: str, packages: tuple[str, ...]) -> bool:
    """Whether a dotted name is that of a package or below it."""
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def _related(name: str, packages: tuple[str, ...]) -> bool:
    """Whether a name is inside one of the packages, or a parent of one."""
    return within(name, packages) or any(within(package, (name,)) for package in packages)


def _described(found: Any) -> str:
    noun = "a class" if inspect.isclass(found) else "a function" if inspect.isroutine(found) else "an object"
    return f"{noun} of {getattr(found, '__module__', None) or type(found).__module__}"


def _first(table: dict[str, Any], path: str) -> Any:
    parts = path.split(".")
    for pattern, value in table.items():
        names = pattern.split(".")
        if len(names) == len(parts) and all(n in ("*", p) for n, p in zip(names, parts, strict=True)):
            return value
    return None


def _check_logging(path: str, node: Any) -> None:
    """logging.config calls any factory, and a file handler writes anywhere."""
    name = path.rpartition(".")[2]
    if ".." in path:
        raise ConfigError(f"{path}: properties of a handler cannot be set in a configuration; remove it")
    if name in ("()", "class", "factory") and node not in LOGGING:
        raise ConfigError(f"{path}={node}: allowed: {', '.join(LOGGING)}")
    if isinstance(node, str) and node.startswith("ext://") and node not in STREAMS:
        raise ConfigError(f"{path}={node}: allowed: {', '.join(STREAMS)}")
    inside = r"(\$\{hydra\.(runtime\.output_dir|run\.dir|sweep\.dir)\}/)(\$\{hydra\.job\.name\}|[\w-])+\.log"
    if name == "filename" and not re.fullmatch(inside, str(node)):
        raise ConfigError(f"{path}={node}: allowed: ${{hydra.runtime.output_dir}}/NAME.log")
