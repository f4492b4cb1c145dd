"""Train a policy on preference pairs: `python -m lightning_dpo.train loss=ipo beta=0.1`.

compose (Hydra) -> check -> build -> fit -> export. Heavy imports are inside functions, so that --help answers at once.
Exit codes: 0 done, 1 failed or out of time, 2 a wrong key, value or row, 130 and 143 ended by Ctrl-C or SIGTERM.
"""

import logging
import os
import sys
import time
import traceback
from functools import partial
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lightning_dpo import allow, config, grid, guard, jobs, redact, sweep
from lightning_dpo.errors import DataError, NonFiniteError
from lightning_dpo.signals import Interrupted, OutOfTime, Stop

if TYPE_CHECKING:
    from lightning_dpo.run_folder import RunFolder

log = logging.getLogger(__name__)
NOISY = ("torchao", "torch.utils._pytree")
"""Loggers that complain of a file each at every start, where torchao is installed."""

guard.install()  # on import: the workers of a launcher start with this module
redact.protect_worker()


def main() -> None:
    """The command."""
    with redact.protected_output():
        command()


def command() -> None:
    # Hydra would print its own errors and exit with 1; so they arrive here, in a sweep as well.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    overrides = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    try:
        config.refuse_secrets(overrides)
        with sweep.ending():
            job()
    except BrokenPipeError:  # `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if config.is_user_error(error) or isinstance(error, DataError):
            print(f"error: {config.explain(error, overrides)}", file=sys.stderr)
            sys.exit(2)
        if isinstance(error, NonFiniteError):
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        traceback.print_exc()
        sys.exit(1)


@hydra.main(config_path=config.config_folder(), config_name="train", version_base="1.3")
def job(cfg: DictConfig) -> float | None:
    """One run, or one of a sweep. Returns its objective, so that a sweeper can search over it."""
    redact.protect_logs()
    state = HydraConfig.get()
    run = partial(train, choices=dict(state.runtime.choices), overrides=list(state.overrides.task))
    if state.mode == RunMode.MULTIRUN:
        return sweep.job(cfg, run)
    grid.refuse_alone(list(state.overrides.task))
    try:
        return run(cfg)
    except (Interrupted, OutOfTime) as end:
        named = any(o.lstrip("+").startswith("output_dir=") for o in state.overrides.task)
        typed = () if named else (f"output_dir={grid.quoted(cfg.output_dir)}",)
        print(f"stopped; continue with: {sweep.typed_line(*typed)}", flush=True)
        if isinstance(end, OutOfTime):
            print(f"error: {end}", file=sys.stderr)
            sys.exit(1)
        raise
    except Exception:
        log.info("the run failed", exc_info=True)  # for train.log; the terminal gets it from main()
        raise


def train(cfg: DictConfig, choices: dict[str, str | None], overrides: list[str]) -> float | None:
    """Check, and run alone in the run's folder."""
    began = time.monotonic()
    config.check(cfg, choices, overrides)  # before the slow imports: a wrong value is answered in seconds

    from lightning_dpo import console, run_folder

    console.quiet()
    folder = run_folder.RunFolder(cfg, jobs.compared(cfg))
    with Stop() as stop, folder.alone():
        if summary := folder.finished():
            console.say(f"finished   {folder.path}: nothing is left to do; type another output_dir=... for a new run")
            return summary["objective"]["value"]
        return _run(cfg, choices, folder, stop, began)


def _run(cfg: DictConfig, choices: dict[str, str | None], folder: "RunFolder", stop: Stop, began: float):
    """Build the parts, data first so that a bad row is named before any weight loads, then fit and export."""

    import lightning as L
    import torch
    from hydra.utils import instantiate

    from lightning_dpo import console, models, tracking
    from lightning_dpo.checkpoint import WholeFiles
    from lightning_dpo.collapse import CollapseWarning, RoundingWarning
    from lightning_dpo.displacement import DisplacementWarning
    from lightning_dpo.module import DPOModule
    from lightning_dpo.saving import Saving

    models.checked_path(cfg.model.path)
    if cfg.reference and cfg.reference.path:
        models.checked_path(cfg.reference.path, "reference.path")
    L.seed_everything(cfg.seed, verbose=False)

    tokenizer = models.load_tokenizer(cfg.model.path, cfg.model.trust_remote_code)
    data = instantiate(cfg.data, tokenizer=tokenizer)
    data.setup()
    start = folder.begin(data.content())
    report = console.data_page(data, folder.path)
    if data.report and not data.report_ches:
        return None
    policy = instantiate(cfg.model)
    models.check_fits(policy, data.pairs())
    if data.report_ches:
        console.ches_page(policy, data, folder.path, report)
    if data.report:
        return None
    module = DPOModule(
        policy,
        loss=instantiate(cfg.loss),
        reference=instantiate(cfg.reference) or None,
        optimizer=instantiate(cfg.optimizer),
        scheduler=instantiate(cfg.scheduler),
        trust_remote_code=cfg.model.trust_remote_code,
        scoring=cfg.scoring,
        nonfinite=cfg.nonfinite,
    )
    scorer = cfg.samples.scorer and allow.allowed(cfg.samples.scorer, "samples.scorer")
    samples = instantiate(cfg.samples, scorer=scorer, output_dir=folder.path)
    clock = tracking.Clock()
    metrics = tracking.MetricsCSV(folder.path)
    warners = [DisplacementWarning(), CollapseWarning(samples, cfg.warn_kl), RoundingWarning()]
    saving = Saving(folder.path, cfg.checkpoint.every_n_steps, metrics, folder.about, stop, cfg.trainer.max_time, began)
    bar = [console.PairProgressBar()] if cfg.trainer.enable_progress_bar else []
    with tracking.closing():
        trainer = instantiate(
            cfg.trainer,
            accelerator=_accelerator(cfg.trainer.accelerator, torch.cuda.is_available()),
            callbacks=[samples, clock, *warners, *instantiate(cfg.callbacks or {}).values(), *bar, saving],
            plugins=[WholeFiles()],
            max_time=None,  # Lightning's ends the run as if it were finished
            logger=[metrics, *(tracking.connect(partial(instantiate, node)) for node in (cfg.logger or {}).values())],
        )
        for logger in trainer.loggers:
            logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
        console.header(cfg, choices, module)
        if start is not None:
            console.say(f"resuming   from {start}")
        elif data.val_sets:
            trainer.validate(module, datamodule=data, verbose=False)
            folder.check_objective(metrics)
        trainer.fit(module, datamodule=data, ckpt_path=start, weights_only=True)
        if data.val_sets and clock.validated_at != trainer.global_step:  # max_steps ended it within an epoch
            trainer.validate(module, datamodule=data, verbose=False)
        if data.streaming:
            console.stream_page(data, folder.path, report)
        folder.export(trainer, module, tokenizer, choices)
        objective = folder.summarise(module, report, metrics, clock, seconds=time.monotonic() - began)
        console.footer(metrics, samples, folder)
        return objective


def _accelerator(name: str, cuda: bool) -> str:
    # Lightning's own "auto" would also take Apple's MPS, on which this project is not tested.
    return ("gpu" if cuda else "cpu") if name == "auto" else name


if __name__ == "__main__":
    # Not the functions of __main__: a launcher sends them to other processes by their module.
    from lightning_dpo.train import main as run

    run()
