"""Train a policy on preference pairs: `python -m lightning_dpo.train loss=ipo beta=0.1`.

compose (Hydra) -> check -> build -> fit -> export. Heavy imports are inside functions, so that --help is fast.
Exit codes: 0 done, 1 failed or out of time, 2 a wrong key, value or row, 130 and 143 stopped by Ctrl-C or SIGTERM.
"""

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from lightning_dpo import console
from lightning_dpo.config.check import check
from lightning_dpo.config.explain import explained
from lightning_dpo.config.request import Request
from lightning_dpo.config.resolvers import config_folder, register
from lightning_dpo.config.schema import complete
from lightning_dpo.config.typed import in_order, readable
from lightning_dpo.errors import ConfigError, DataError
from lightning_dpo.run.identity import fingerprint
from lightning_dpo.run.records import removed_if_refused
from lightning_dpo.run.signals import Stop
from lightning_dpo.safety import hydra_guard, secrets
from lightning_dpo.sweep import overrides, sweep

if TYPE_CHECKING:
    from lightning_dpo.config.build import Parts

# on import, because workers of a launcher import this module first
hydra_guard.install(config_folder(), register, readable, complete)
secrets.protect_worker()


def main() -> None:
    """The command."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # otherwise Hydra prints its errors itself and exits with 1
    console.quiet_imports()
    sys.argv[1:] = in_order(sys.argv[1:])
    typed = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    with secrets.protected_output(), console.exit_codes(), hydra_guard.command(), explained(typed), sweep.ending():
        secrets.refuse_secrets(typed)
        job()


@hydra.main(config_path=config_folder(), config_name="train", version_base="1.3")
def job(cfg: DictConfig) -> float | None:
    """One run, or one of a sweep. Returns its objective, so that a sweeper can search over it."""
    secrets.protect_logs()
    state = HydraConfig.get()
    request = Request(cfg, dict(state.runtime.choices), list(state.overrides.task))
    if state.mode == RunMode.MULTIRUN:
        return sweep.job(request, train)
    with sweep.carried(ConfigError, DataError), removed_if_refused(Path(cfg.output_dir).absolute()):
        with overrides.without_sweep(request):
            return train(request)


def train(request: Request) -> float | None:
    """Check, build, fit and export one run; returns its objective."""
    began = time.monotonic()
    # before the slow imports, so that a wrong value is refused within seconds
    check(request.cfg, request.choices, request.overrides)

    from lightning_dpo.config.build import build
    from lightning_dpo.loggers.wandb import closing
    from lightning_dpo.run.folder import RunFolder

    console.quiet()
    folder = RunFolder(request.cfg, fingerprint(request.cfg))
    with Stop() as stop, folder.locked():
        if summary := folder.finished():
            console.say(f"finished   {folder.path}: nothing is left to do; type output_dir=... to start a new run")
            return summary["objective"]["value"]
        with closing():
            parts = build(request, folder, stop, began)
            if parts is None:  # a data report alone
                return None
            fit(parts, request)
            return export(parts, request, began)


def fit(parts: "Parts", request: Request) -> None:
    """Validate, train from the start or from a checkpoint, and validate."""
    from lightning_dpo.run.terminal import header

    trainer, module, data = parts.trainer, parts.module, parts.data
    header(request.cfg, request.choices, module)
    if parts.start is not None:
        console.say(f"resuming   from {parts.start}")
    elif data.val_sets:
        trainer.validate(module, datamodule=data, verbose=False)
        parts.folder.check_measured(parts.metrics)
    trainer.fit(module, datamodule=data, ckpt_path=parts.start, weights_only=True)
    unseen = parts.best is not None and parts.best.step is None  # asked for at the end of a resumed run
    if data.val_sets and (unseen or parts.throughput.validated_at != trainer.global_step):  # max_steps, in an epoch
        trainer.validate(module, datamodule=data, verbose=False)


def export(parts: "Parts", request: Request, began: float) -> float | None:
    """Write the checkpoint, model/ and, last, summary.json; returns the objective."""
    from lightning_dpo.data.report import stream_page
    from lightning_dpo.run.terminal import footer

    folder, metrics, samples = parts.folder, parts.metrics, parts.samples
    if parts.data.streaming:
        stream_page(parts.data, folder.path, parts.report)
    folder.export(parts.trainer, parts.module, parts.data, request.choices, parts.best)
    seconds = time.monotonic() - began
    objective = folder.summarise(parts.module, parts.report, metrics, parts.throughput, parts.best, seconds)
    footer(metrics, samples.first, samples.last, parts.best, folder.path)
    return objective


if __name__ == "__main__":
    # A launcher sends functions to other processes by module name, so not those of __main__.
    from lightning_dpo.train import main as run

    run()
