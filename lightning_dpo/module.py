"""DPOModule: the training step, the optimizer and what is logged, the same for every loss."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel

from lightning_dpo import nonfinite
from lightning_dpo.batch import PairBatch, check_batch
from lightning_dpo.data import PreferenceDataModule
from lightning_dpo.ledger import PairMeans, StepLedger, number_steps_from_one
from lightning_dpo.losses import Loss, PairLogps, needs_of
from lightning_dpo.losses.needs import check_batches, check_columns, check_reference
from lightning_dpo.losses.plain import as_loss, to_plain
from lightning_dpo.metrics import pair_metrics
from lightning_dpo.models.checks import check_fits
from lightning_dpo.models.layers import without_dropout
from lightning_dpo.models.loading import as_model, loader_like, plain_config
from lightning_dpo.nonfinite import NonFinite
from lightning_dpo.optim import check_optimizer, clip, describe, schedule
from lightning_dpo.reference import Reference
from lightning_dpo.scoring import Scorer, Scoring, pair_logps
from lightning_dpo.scoring.attention import disable
from lightning_dpo.scoring.first_batch import check_first_batch
from lightning_dpo.scoring.load_balancing import coefficient

ADAMW = partial(AdamW, lr=1e-6, weight_decay=0.0)


class DPOModule(L.LightningModule):
    """A policy, a pairwise preference loss and a reference, for any `lightning.Trainer`.

    Args:
        model: the policy, or its folder or hub id (loaded in float32). Dropout is off in training too.
        loss: `partial(losses.dpo, beta=0.1)` or any function PairLogps -> PairLoss. A loss with a memory is an
            nn.Module, and checkpoints keep its state.
        reference: CopyReference() or CachedReference(); None for a loss that needs none.
        optimizer: parameters -> optimizer.
        scheduler: optimizer -> any LRScheduler, stepped after each optimizer step, or Lightning's dict with `interval`,
            `frequency` and `monitor`. An argument `total_steps` receives the optimizer steps of the run. None: the
            learning rate stays as the optimizer sets it.
        trust_remote_code: whether a model loaded from a folder or the hub may run its own code.
        scoring: how a batch is laid out for the model, see Scorer.
        nonfinite: a step whose loss or gradient is NaN or infinite raises NonFiniteError ("stop") or leaves the weights
            unchanged ("skip"). Its rows go to `nonfinite.jsonl` in the trainer's default_root_dir.

    Batches are PairBatch objects, as PreferenceDataModule makes them. An optimizer step minimises the mean over all its
    pairs, whatever the micro-batches, the ranks or the size of the last window.

    A checkpoint holds the policy and plain settings. `DPOModule.load_from_checkpoint(path)` restores the policy and the
    loss, without a reference. A loss from another package must be passed: `load_from_checkpoint(path, loss=...)`.
    """

    def __init__(
        self,
        model: PreTrainedModel | str | Path | Mapping[str, Any],
        loss: Loss | Mapping[str, Any],
        reference: Reference | None = None,
        optimizer: Callable[..., Optimizer] = ADAMW,
        scheduler: Callable[..., Any] | None = schedule,
        trust_remote_code: bool = False,
        scoring: Scoring = "auto",
        nonfinite: NonFinite = "stop",
    ):
        super().__init__()
        self.policy = as_model(model, trust_remote_code)
        self.loss = as_loss(loss)
        self.needs = needs_of(self.loss)
        check_reference(self.needs, reference)
        self.optimizer, self.scheduler = optimizer, scheduler
        self.reference = reference
        if reference is not None:
            reference.bind(self.policy, loader_like(self.policy, trust_remote_code), scoring)
        plain = {"model": plain_config(self.policy), "loss": to_plain(self.loss), "scoring": scoring}
        self.save_hyperparameters({k: v for k, v in plain.items() if v is not None}, logger=False)
        self.scorer = Scorer(self.policy, scoring)
        self.ledger = StepLedger(nonfinite)
        self._means = defaultdict(PairMeans)
        """Means of each validation set, by its name."""
        self.train()

    def train(self, mode: bool = True) -> "DPOModule":
        """Dropout is off in training too: policy and reference must differ by their weights only."""
        super().train(mode)
        without_dropout(self.policy)
        if self.reference is not None:
            self.reference.eval()
        return self

    def setup(self, stage: str) -> None:
        check_batches(self.needs, self.trainer.accumulate_grad_batches, self.trainer.world_size)
        if isinstance(data := getattr(self.trainer, "datamodule", None), PreferenceDataModule):
            check_fits(self.policy.config, data.pairs())
        if self.reference is not None:
            self.reference.prepare(self.policy, self.trainer)

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        if self.trainer.global_step == 0 and batch_idx == 0:
            check_batch(batch)
            equal = {"the reference": self.reference} if self.reference and self.reference.is_policy else {}
            check_first_batch(self.scorer, batch, equal, self.needs)
        self.ledger.open(self.loss)
        try:
            logps, loss, metrics = self._losses(batch)
        except BaseException:
            disable(self.policy)
            raise
        self.ledger.add(batch, logps, metrics)
        return loss.sum()  # on_before_optimizer_step divides by the pairs of the whole step

    def validation_step(self, batch: PairBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, dataloader_idx, "val")

    def test_step(self, batch: PairBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, dataloader_idx, "test")

    @torch.no_grad()
    def predict_step(self, batch: PairBatch, batch_idx: int = 0, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Every metric of each pair, shape [pair], by its name (metrics.py), and `index`, the pair's row."""
        *_, metrics = self._losses(batch)
        return {"index": batch.index, **{name: value.cpu() for name, value in metrics.items()}}

    def _evaluate(self, batch: PairBatch, dataloader_idx: int, stage: str) -> None:
        *_, metrics = self._losses(batch)
        # A named set is logged by itself, and its pairs count in val/ too.
        names = list(getattr(getattr(self.trainer, "datamodule", None), "val_sets", {}))
        loaders: Any = self.trainer.val_dataloaders if stage == "val" else self.trainer.test_dataloaders
        named = isinstance(loaders, list) and len(loaders) == len(names)  # else they are not the data module's
        own = stage + names[dataloader_idx].removeprefix("val") if named else stage
        for name in {stage, own}:
            self._means[name].update(metrics)

    def _losses(self, batch: PairBatch) -> tuple[PairLogps, Tensor, dict[str, Tensor]]:
        """The loss's input, the values to minimise, shape [pair], and the metrics of each pair."""
        check_batch(batch)
        logps, aux_loss = self._score(batch)
        result = self.loss(logps)
        if batch.weight is not None:
            result = replace(result, loss=result.loss * batch.weight.to(result.loss))
        metrics, loss = pair_metrics(logps, result, chosen_only="chosen_only" in self.needs), result.loss
        if aux_loss is not None:
            metrics["aux_loss"] = aux_loss.detach().expand_as(loss)
            loss = loss + coefficient(self.policy) * aux_loss
        return logps, loss, metrics

    def _score(self, batch: PairBatch) -> tuple[PairLogps, Tensor | None]:
        """The loss's input, and the load-balancing loss of a mixture of experts."""
        check_columns(self.needs, batch.weight, batch.margin)
        if self.reference is not None and "reference_kl" in self.needs:
            scores = self.scorer.score(batch, self.needs, self.reference.scorer)
        else:
            reference = None if self.reference is None else self.reference(batch)
            scores = self.scorer.score(batch, self.needs)._replace(reference=reference)
        return pair_logps(scores, batch.index, batch.margin), scores.aux_loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        try:
            super().backward(loss, *args, **kwargs)
        finally:
            disable(self.policy)  # outside of a step the policy is the plain model

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self.reference is not None:
            self.reference.is_policy = False
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        means = self.ledger.divide(gradients, self.trainer)
        lr = optimizer.param_groups[0].get("lr")  # None: Adafactor chooses its own
        own = {"grad_norm": torch.nn.utils.get_total_norm(gradients), **({} if lr is None else {"lr": float(lr)})}
        row = {f"train/{name}": value for name, value in {**means, **own}.items()}
        self.log_dict(row, logger=False)  # for the progress bar and callbacks
        self.ledger.close(row, self.trainer, optimizer, self.loss)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        clip(self.trainer.precision_plugin, optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_start(self) -> None:
        if self.trainer.global_step == 0:
            number_steps_from_one(self.trainer)
        if isinstance(data := getattr(self.trainer, "datamodule", None), PreferenceDataModule):
            data.position.count_batches(self.trainer)

    def on_validation_start(self) -> None:
        self.ledger.write(self.trainer)

    def on_train_end(self) -> None:
        self.ledger.write(self.trainer)

    def on_validation_epoch_end(self) -> None:
        for stage, values in self._means.items():
            means, _ = values.compute(partial(self.trainer.strategy.reduce, reduce_op="sum"))  # type: ignore[arg-type]
            self.log_dict({f"{stage}/{name}": value for name, value in means.items()})
            if self.ledger.nonfinite == "stop":
                nonfinite.check_mean(f"step {self.trainer.global_step}: {stage}/loss", means["loss"])
        self._means.clear()
        # Lightning takes a metric of this name as the row's step.
        self.log("step", float(self.trainer.global_step))

    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end()

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer([p for p in self.policy.parameters() if p.requires_grad])
        check_optimizer(optimizer)
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise ValueError("the run has no end: set trainer.max_epochs or trainer.max_steps")
        if self.scheduler is None or total == 0 or self.trainer.max_epochs == 0:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": describe(self.scheduler, optimizer, int(total))}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.ledger.check(self.trainer)
        nonfinite.check_weights(self.policy)
        if "loops" in checkpoint:  # not with save_weights_only
            _uncount_epoch(checkpoint["loops"]["fit_loop"])
        for key in [k for k in checkpoint["state_dict"] if k.startswith("reference.")]:
            del checkpoint["state_dict"][key]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.reference is not None:
            self.reference.is_policy = False
        own = self.state_dict().items()
        checkpoint["state_dict"].update({k: v for k, v in own if k.startswith("reference.")})


def _uncount_epoch(fit_loop: dict[str, Any]) -> None:
    """Lightning counts an epoch that max_steps or an early stop has cut short as complete, and would go on after it."""
    if not fit_loop["epoch_loop.batch_progress"]["is_last_batch"]:
        for counts in fit_loop["epoch_progress"].values():
            unfinished = max(0, counts["ready"] - 1)
            counts.update(processed=unfinished, completed=unfinished)
