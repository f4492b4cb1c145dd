"""From a checked configuration to the parts of a run."""

from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf

from lightning_dpo.callbacks.alarms import CollapseWarning, DisplacementWarning, RoundingWarning
from lightning_dpo.callbacks.best import Best
from lightning_dpo.callbacks.progress_bar import PairProgressBar
from lightning_dpo.callbacks.saving import Saving
from lightning_dpo.config.instantiation import instantiate
from lightning_dpo.config.request import Request
from lightning_dpo.data.report import ReportOptions, ches_page, data_page
from lightning_dpo.errors import ConfigError
from lightning_dpo.loggers.metrics_csv import MetricsCSV
from lightning_dpo.loggers.wandb import connect
from lightning_dpo.models.checks import check_fits
from lightning_dpo.models.loading import load_config, resize_embeddings
from lightning_dpo.models.paths import check_path
from lightning_dpo.models.tokenizers import TokenizerOptions, largest_id
from lightning_dpo.module import DPOModule
from lightning_dpo.optim import Stepping
from lightning_dpo.run.checkpoint import AtomicCheckpointIO
from lightning_dpo.run.folder import RunFolder
from lightning_dpo.run.signals import Stop
from lightning_dpo.run.throughput import Throughput
from lightning_dpo.safety import targets
from lightning_dpo.samples import SampleCallback


@dataclass(frozen=True)
class Parts:
    """The parts of a run.

    start: the checkpoint to resume from; None starts anew. report: the data report.
    """

    folder: RunFolder
    trainer: L.Trainer
    module: DPOModule
    data: Any
    samples: SampleCallback
    metrics: MetricsCSV
    throughput: Throughput
    best: Best | None
    start: Path | None
    report: dict[str, Any]


def build(request: Request, folder: RunFolder, stop: Stop, began: float) -> Parts | None:
    """Build the data first, so that a bad row is named before any weight loads; None after a data report alone.

    Args:
        stop: receives the signals that stop the run.
        began: start of the command, on the clock `time.monotonic`.
    """
    cfg = request.cfg
    config = load_config(cfg.model.path, cfg.model.trust_remote_code)
    if cfg.reference and cfg.reference.path:
        check_path(cfg.reference.path, "reference.path")
    L.seed_everything(cfg.seed, verbose=False)
    chosen = TokenizerOptions(**TokenizerOptions.keys(cfg.model))
    tokenizer = chosen.load(cfg.model.path, cfg.model.trust_remote_code)
    asked = ReportOptions.keys(cfg.data)
    data = instantiate(_without(cfg.data, asked), tokenizer=tokenizer)
    data.setup()
    _check_interval(cfg.trainer, data)
    start = folder.begin(data.content())
    options = ReportOptions(**asked)
    report = data_page(data, folder.path, options.report_plot)
    if options.report and not options.report_ches:
        return None
    check_fits(config, data.pairs(), embeddings=largest_id(tokenizer) + 1 if chosen.resize_embeddings else 0)
    policy = instantiate(_without(cfg.model, TokenizerOptions.keys(cfg.model)))
    if chosen.resize_embeddings:
        resize_embeddings(policy, tokenizer)
    if options.report_ches:
        ches_page(policy, data, folder.path, report)
    if options.report:
        return None
    module = _module(cfg, policy)
    scorer = cfg.samples.scorer and targets.allowed(cfg.samples.scorer, "samples.scorer")
    samples = instantiate(cfg.samples, scorer=scorer, output_dir=folder.path)
    metrics, throughput = MetricsCSV(folder.path), Throughput()
    bar = [PairProgressBar()] if cfg.trainer.enable_progress_bar else []
    saving = Saving(
        folder.path, cfg.checkpoint.every_n_steps, metrics, folder.metadata, stop, cfg.trainer.max_time, began
    )
    warnings = [DisplacementWarning(), CollapseWarning(samples, cfg.warn_kl), RoundingWarning()]
    best = Best(folder.path, **cfg.checkpoint) if cfg.checkpoint.best else None
    own = [*warnings, *([best] if best else []), *(instantiate(node) for node in cfg.callbacks.values()), *bar]
    callbacks = [samples, throughput, *own, saving]
    trainer = _trainer(cfg, callbacks, metrics, resumes=start is not None)
    return Parts(folder, trainer, module, data, samples, metrics, throughput, best, start, report)


def _module(cfg: DictConfig, policy: Any) -> DPOModule:
    return DPOModule(
        policy,
        loss=instantiate(cfg.loss),
        reference=instantiate(cfg.reference) or None,
        optimizer=instantiate(cfg.optimizer),
        scheduler=build_scheduler(cfg.scheduler),
        trust_remote_code=cfg.model.trust_remote_code,
        scoring=cfg.scoring,
        nonfinite=cfg.nonfinite,
    )


def _check_interval(trainer: DictConfig, data: Any) -> None:
    """Errors: ConfigError for more micro-batches between two validations than an epoch has."""
    interval, limit = trainer.val_check_interval, trainer.get("limit_train_batches", 1.0)
    whole = data.streaming or trainer.get("check_val_every_n_epoch", 1) is None
    if whole or not isinstance(interval, int):
        return
    batches = len(data.train_dataloader())
    batches = min(limit, batches) if isinstance(limit, int) else int(limit * batches)
    if batches and interval > batches:
        raise ConfigError(
            f"trainer.val_check_interval={interval}: an epoch has {batches} micro-batches; type at most that, or a "
            "share such as 0.5"
        )


def build_scheduler(node: DictConfig) -> Callable[..., Any] | None:
    """The scheduler of a DPOModule. Errors: ConfigError, see `Stepping`."""
    stepping = Stepping.keys(node)
    return Stepping(**stepping).of(instantiate(_without(node, stepping))) if node else None


def _without(node: DictConfig, keys: Container[Any]) -> DictConfig:
    return OmegaConf.masked_copy(node, [str(key) for key in node if key not in keys])


def _trainer(cfg: DictConfig, callbacks: list[L.Callback], metrics: MetricsCSV, resumes: bool) -> L.Trainer:
    accelerator = cfg.trainer.accelerator
    if accelerator == "auto":  # Lightning's own would also take Apple's MPS, on which this project is not tested
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    # a partial, because instantiate would turn an object that is a dataclass into a configuration
    trainer = instantiate(cfg.trainer, _partial_=True)(
        accelerator=accelerator,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        max_time=None,  # Lightning's would end the run as if it were finished
        logger=[metrics, *(connect(partial(instantiate, node), resumes) for node in cfg.logger.values())],
    )
    for logger in trainer.loggers:
        logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
    return trainer
