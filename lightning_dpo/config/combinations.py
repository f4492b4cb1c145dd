"""Combinations of valid keys that contradict each other, or that a run cannot honour."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lightning_dpo.errors import ConfigError
from lightning_dpo.signatures import leaves, nodes

ADDS = "NAME={_target_: ...} instead, which adds to the run's own"
TRAINER = {
    "callbacks": ((None,), f"type callbacks.{ADDS}"),
    "logger": ((None,), f"type logger.{ADDS}"),
    "devices": ((1, "1"), "one device is supported so far; type trainer.devices=1"),
    "num_nodes": ((1,), "one device is supported so far; leave it out"),
    "fast_dev_run": ((False, 0), "it logs and saves nothing; type trainer.max_steps=1"),
    "barebones": ((False,), "it logs and saves nothing; leave it out"),
    "enable_checkpointing": ((False,), "a run saves checkpoints/ itself; type checkpoint.every_n_steps=..."),
    "reload_dataloaders_every_n_epochs": ((0,), "a run could not resume within an epoch; leave it out"),
    "overfit_batches": ((0,), "it replaces the order of the data; type +trainer.limit_train_batches=..."),
    "strategy": (("auto",), "one device is supported so far; leave it out"),
}
"""Keys of Lightning's trainer that a run does not honour: the values that it accepts, and the remedy."""

LEAST = {
    "trainer.accumulate_grad_batches": 1,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.log_every_n_steps": 1,
    "trainer.max_epochs": -1,
    "trainer.max_steps": -1,
    "checkpoint.every_n_steps": 1,
}
"""The smallest value of keys whose receiver does not say it."""

NOT_RESUMED = (
    *("GradientAccumulationScheduler", "StochasticWeightAveraging", "WeightAveraging", "EMAWeightAveraging"),
    *("LearningRateFinder", "BatchSizeFinder", "ModelPruning"),
)
"""Callbacks of Lightning whose state is not in a checkpoint."""

PATHS = ("save_dir", "root_dir", "default_root_dir", "dirpath", "dir", "log_dir", "sub_dir", "filename")
"""Arguments that name a file or a folder; `name` and `version` do too, except for W&B."""


INSIDE = ("logger", "callbacks", "trainer")
"""Groups whose parts write into the run's folder."""


def expand_home(cfg: DictConfig) -> None:
    """Expand `~` in the paths of a logger, a callback or a profiler: some would make a folder of that name."""
    plain: Any = OmegaConf.to_container(cfg)
    for path, node in nodes({group: plain[group] for group in INSIDE if plain.get(group)}, lists=False):
        if path.rpartition(".")[2] in PATHS and str(node).startswith("~"):
            OmegaConf.update(cfg, path, os.path.expanduser(node))


def check_inside(cfg: dict[str, Any]) -> None:
    """Errors: ConfigError for a logger, a callback or a profiler that would write outside the run's folder."""
    top = Path(cfg["output_dir"]).absolute()
    for path, node in nodes({k: cfg[k] for k in INSIDE if cfg.get(k)}):
        target = str(node.get("_target_", "")) if isinstance(node, dict) else ""
        names = PATHS if target.endswith("WandbLogger") else (*PATHS, "name", "version")
        for name in names if target else ():
            value = node.get(name)
            place = os.path.normpath(top / Path(str(value)).expanduser())
            if value is not None and not Path(place).is_relative_to(os.path.normpath(top)):
                raise ConfigError(f"{path}.{name}={value}: outside the run's folder; type output_dir=...")


def check_combinations(cfg: dict[str, Any]) -> None:
    """Errors: ConfigError for keys that contradict each other, or that a run cannot honour."""
    for name, (honoured, remedy) in TRAINER.items():
        if (value := cfg["trainer"].get(name, honoured[0])) not in honoured:
            raise ConfigError(f"trainer.{name}={value}: {remedy}")
    values = leaves(cfg)
    for key, least in LEAST.items():
        if (value := values.get(key)) is not None and value < least:
            raise ConfigError(f"{key}={value}: allowed: a whole number in [{least}, inf)")
    for name, logger in cfg["logger"].items():
        if _class(logger) == "TensorBoardLogger" and not (find_spec("tensorboard") or find_spec("tensorboardX")):
            raise ConfigError(f"logger.{name} needs tensorboard: pip install 'lightning-dpo[tensorboard]'")
    for name, callback in cfg["callbacks"].items():
        if _class(callback) in NOT_RESUMED:
            reason = "a checkpoint does not hold its whole state, so a resumed run would end differently; leave it out"
            raise ConfigError(f"callbacks.{name}={_class(callback)}: {reason}")
    for key, name in values.items():
        if key.endswith(".monitor") and not str(name or "val/").startswith(("train/", "val/")):
            raise ConfigError(f"{key}={name}: names of metrics begin with train/ or val/; see metrics.csv")
    for message, broken in _rules(cfg).items():
        if broken:
            raise ConfigError(message)


def _rules(cfg: dict[str, Any]) -> dict[str, bool]:
    """What is wrong with a combination of keys, and whether it is this one."""
    trainer, data = cfg["trainer"], cfg["data"]
    streaming, check = bool(data.get("streaming")), trainer["val_check_interval"]
    cached = str(cfg["reference"].get("_target_")).endswith("CachedReference")
    report = any(data.get(name) for name in ("report", "report_plot", "report_ches"))
    epochs = "null" if trainer["max_epochs"] is None else trainer["max_epochs"]
    scaled, endless = trainer["precision"] == "16-mixed", trainer["max_steps"] == -1
    return {
        f"objective={cfg['objective']}: names of metrics begin with train/ or val/; see metrics.csv": (
            not str(cfg["objective"]).startswith(("train/", "val/"))
        ),
        f"trainer.val_check_interval={check}: by the clock no two runs validate at the same steps; "
        "type a share or a number": not isinstance(check, int | float | None),
        f"checkpoint.best={cfg['checkpoint']['best']} with data.val=null: nothing is validated; set data.val": (
            bool(cfg["checkpoint"]["best"]) and data.get("val") is None
        ),
        f"checkpoint.best={cfg['checkpoint']['best']}: a validation's metrics begin with val/; see metrics.csv": (
            not str(cfg["checkpoint"]["best"] or "val/").startswith("val/")
        ),
        "optimizer.fused=true with trainer.precision=16-mixed: a fused step unscales its gradients after they are "
        "clipped and logged; type optimizer.fused=false, or trainer.precision=bf16-mixed": (
            scaled and bool(cfg["optimizer"].get("fused"))
        ),
        "reference=cached with data.streaming=true: the cache needs all rows at once; type reference=copy": (
            streaming and cached
        ),
        "data.report with data.streaming=true: a stream is read while it is trained; type data.streaming=false": (
            streaming and report
        ),
        "data.streaming=true: the length of a stream is unknown; type trainer.max_steps=...": streaming and endless,
        f"trainer.max_epochs={epochs} with trainer.max_steps=-1 never ends; set one of them": (
            endless and epochs in (-1, "null")
        ),
    }


def _class(node: Any) -> str:
    return str((node or {}).get("_target_")).rpartition(".")[2]
