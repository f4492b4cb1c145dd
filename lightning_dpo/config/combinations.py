"""Keys that each are right by themselves, and cannot be together or cannot be honoured here."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning_dpo.errors import ConfigError
from lightning_dpo.signatures import nodes

ADDS = "NAME={_target_: ...} instead, which adds to the run's own"
TRAINER = {
    "callbacks": ((None,), f"type callbacks.{ADDS}"),
    "logger": ((None,), f"type logger.{ADDS}"),
    "devices": ((1, "1"), "one device is supported so far; type trainer.devices=1"),
    "num_nodes": ((1,), "one device is supported so far; leave it out"),
    "fast_dev_run": ((False, 0), "it logs and saves nothing; type trainer.max_steps=1"),
    "barebones": ((False,), "it logs and saves nothing; leave it out"),
    "enable_checkpointing": ((False,), "a run saves checkpoints/ itself; type checkpoint.every_n_steps=..."),
    "reload_dataloaders_every_n_epochs": (
        (0,),
        "data are read once, and a run could not go on within an epoch; leave it out",
    ),
}
"""Keys of Lightning's trainer that a run does not honour: the values that it does, and what to do instead."""

NOT_RESUMED = (
    *("GradientAccumulationScheduler", "StochasticWeightAveraging", "WeightAveraging", "EMAWeightAveraging"),
    *("LearningRateFinder", "BatchSizeFinder", "ModelPruning"),
)
"""Callbacks of Lightning after which a run that was stopped does not end as one that never was."""


PATHS = ("save_dir", "root_dir", "default_root_dir", "dirpath", "dir", "log_dir", "sub_dir", "filename")
"""Arguments that name a file or a folder; `name` and `version` do too, but for W&B."""


def check_inside(cfg: dict[str, Any]) -> None:
    """Errors: ConfigError for a logger, a callback or a profiler that would write outside the run's folder."""
    top = Path(cfg["output_dir"]).absolute()
    for path, node in nodes({k: cfg[k] for k in ("logger", "callbacks", "trainer") if cfg.get(k)}):
        target = str(node.get("_target_", "")) if isinstance(node, dict) else ""
        names = PATHS if target.endswith("WandbLogger") else (*PATHS, "name", "version")
        for name in names if target else ():
            value = node.get(name)
            place = os.path.normpath(top / Path(str(value)).expanduser())
            if value is not None and not Path(place).is_relative_to(os.path.normpath(top)):
                raise ConfigError(f"{path}.{name}={value}: outside the run's folder; type output_dir=...")


def check_combinations(cfg: dict[str, Any]) -> None:
    """Errors: ConfigError for keys that cannot be together, or that a run cannot honour."""
    trainer = cfg["trainer"]
    if not str(cfg["objective"]).startswith(("train/", "val/")):
        raise ConfigError(f"objective={cfg['objective']}: names of metrics begin with train/ or val/; see metrics.csv")
    for name, (honoured, reason) in TRAINER.items():
        if trainer.get(name, honoured[0]) not in honoured:
            raise ConfigError(f"trainer.{name}={trainer[name]}: {reason}")
    for name, logger in (cfg["logger"] or {}).items():
        kind = str((logger or {}).get("_target_")).rpartition(".")[2]
        if kind == "TensorBoardLogger" and not (find_spec("tensorboard") or find_spec("tensorboardX")):
            raise ConfigError(f"logger.{name} needs tensorboard: pip install 'lightning-dpo[tensorboard]'")
    for name, callback in (cfg.get("callbacks") or {}).items():
        kind = str((callback or {}).get("_target_")).rpartition(".")[2]
        if kind in NOT_RESUMED:
            raise ConfigError(
                f"callbacks.{name}={kind}: a checkpoint does not hold all that it needs, so a run that was stopped "
                "would not end as one that never was; leave it out"
            )
    if not isinstance(trainer["val_check_interval"], int | float | None):
        told = f"trainer.val_check_interval={trainer['val_check_interval']}"
        raise ConfigError(f"{told}: by the clock no two runs validate at the same steps; type a share or a number")
    if trainer["precision"] == "16-mixed" and cfg["optimizer"].get("fused"):
        raise ConfigError(
            "optimizer.fused=true with trainer.precision=16-mixed: a fused step unscales its gradients after they are "
            "clipped and logged; type optimizer.fused=false, or trainer.precision=bf16-mixed"
        )
    data, choice = cfg["data"], cfg["reference"] or {}
    if data.get("streaming") and choice.get("_target_", "").endswith("CachedReference"):
        raise ConfigError(
            "reference=cached with data.streaming=true: the cache needs all rows at once; type reference=copy"
        )
    if data.get("streaming") and any(data.get(name) for name in ("report", "report_plot", "report_ches")):
        raise ConfigError(
            "data.report with data.streaming=true: a stream is read as it is trained; type data.streaming=false"
        )
    if data.get("streaming") and trainer["max_steps"] == -1:
        raise ConfigError("data.streaming=true: nobody knows how long a stream is; type trainer.max_steps=...")
    if trainer["max_epochs"] == -1 and trainer["max_steps"] == -1:
        raise ConfigError("trainer.max_epochs=-1 with trainer.max_steps=-1 never ends; set one of them")
