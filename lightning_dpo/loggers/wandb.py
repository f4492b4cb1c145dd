"""Weights & Biases: a run that goes on without a network, and ends with its block."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import wandb
from lightning.pytorch.loggers import Logger, WandbLogger
from wandb.errors import AuthenticationError, CommError, UsageError

from lightning_dpo.errors import ConfigError

log = logging.getLogger(__name__)


STEP = "trainer/global_step"
"""W&B's axis of all metrics, as Lightning's logger names it; metrics.csv calls it `step`."""


BEST = {"val/loss": "min", "val/rewards/accuracies": "max"}
"""Metrics whose best value W&B keeps in a run's summary, beside the last."""


def connect(build: Callable[..., Logger]) -> Logger:
    """A logger, W&B connected or, where that fails, offline: without a key or a network it would end the run."""
    logger = build()
    if isinstance(logger, WandbLogger):
        try:
            _start(logger)
        except (CommError, UsageError, AuthenticationError) as error:
            reason = str(error).splitlines()[0]
            print(f"W&B cannot go online ({reason}); logging offline, `wandb sync` uploads later", flush=True)
            log.warning("W&B offline: %s", reason)
            wandb.teardown()
            logger = build(mode="offline")
            _start(logger)  # type: ignore[arg-type]
    return logger


def _start(logger: WandbLogger) -> None:
    logger._wandb_init.pop("anonymous", None)  # Lightning hands on its None, and W&B warns of that at each run
    run = logger.experiment
    for name, best in BEST.items():
        # Without the step, this would take away the axis that Lightning has defined for all names.
        run.define_metric(name, step_metric=STEP, summary=f"last,{best}")


def online_entity() -> str:
    """The user's or team's name at W&B.

    Errors: ConfigError where W&B cannot be asked.
    """
    try:
        return wandb.Api(timeout=10).default_entity or ""
    except (CommError, UsageError, AuthenticationError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"W&B cannot be reached ({reason}); type wandb login, or --dry-run for the JSON") from None


def annotate(loggers: Iterable[Logger], name: str, text: str) -> None:
    """A text in the summary of the W&B run, where there is one; metrics.csv holds numbers only."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary[name] = text


@contextmanager
def closing() -> Iterator[None]:
    """The W&B run ends with the block, as finished or as failed: a later logger of the process would go on in it."""
    failed = 1
    try:
        yield
        failed = 0
    finally:
        if wandb.run is not None:
            wandb.finish(exit_code=failed)
