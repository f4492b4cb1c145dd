"""Weights & Biases: offline where it cannot be reached, and one W&B run per block."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import wandb
from lightning.pytorch.loggers import Logger, WandbLogger
from wandb.env import get_data_dir
from wandb.errors import CommError, UsageError

from lightning_dpo.errors import ConfigError
from lightning_dpo.files import check_writable

log = logging.getLogger(__name__)

BEST = {"val/loss": "min", "val/rewards/accuracies": "max"}
"""Metrics whose best value, besides the last, W&B keeps in the summary of a run."""
UNREACHABLE = (CommError, UsageError)
"""W&B's errors without a key (AuthenticationError is a CommError) or a network."""


PART = re.compile(r"(?:offline-)?run-(\d+_\d+)-(.+)")
"""W&B's folder of a process: its time, and the id of the run."""


def connect(build: Callable[..., Logger], resumes: bool = False) -> Logger:
    """Build a logger and connect it, if it is W&B's. Without a key or a network it logs offline.

    Args:
        resumes: whether the run goes on in its folder; it then keeps the id of its W&B run.
    """
    logger = build()
    if isinstance(logger, WandbLogger):
        if resumes and logger.version is None and (run := _last_run(Path(logger.save_dir or "."))):
            return connect(partial(build, id=run))
        if logger._wandb_init.get("mode") != "disabled":
            data = get_data_dir()  # tables are kept there until they are in the run
            check_writable(Path(data), f"WANDB_DATA_DIR={data} of logger=wandb")
        try:
            _start(logger)
        except UNREACHABLE as error:
            reason = str(error).splitlines()[0]
            print(f"W&B cannot go online ({reason}); logging offline, `wandb sync` uploads later", flush=True)
            log.warning("W&B offline: %s", reason)
            wandb.teardown()
            logger = build(mode="offline")
            _start(logger)  # type: ignore[arg-type]
    return logger


def _last_run(folder: Path) -> str | None:
    """The id of the W&B run that was last logged to in this folder."""
    parts = [match.groups() for path in folder.glob("wandb/*") if (match := PART.fullmatch(path.name))]
    return max(parts)[1] if parts else None


def _start(logger: WandbLogger) -> None:
    logger._wandb_init.pop("anonymous", None)  # Lightning passes None, and W&B warns about it
    run = logger.experiment
    for name, best in BEST.items():
        # Without `step_metric`, this would remove the x-axis that Lightning has defined for all names.
        run.define_metric(name, step_metric="trainer/global_step", summary=f"last,{best}")


def online_entity() -> str:
    """The name of the user or team at W&B. Errors: ConfigError if W&B cannot be reached."""
    try:
        return wandb.Api(timeout=10).default_entity or ""
    except UNREACHABLE as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"W&B cannot be reached ({reason}); type wandb login, or --dry-run for the JSON") from None


def annotate(loggers: Iterable[Logger], name: str, text: str) -> None:
    """Put a text into the summary of the W&B run, if there is one; metrics.csv holds numbers only."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary[name] = text


@contextmanager
def closing() -> Iterator[None]:
    """End the W&B run with the block, as finished or failed. Otherwise the process's next logger would continue it."""
    failed = 1
    try:
        yield
        failed = 0
    finally:
        if wandb.run is not None:
            wandb.finish(exit_code=failed)
