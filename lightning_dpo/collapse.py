"""Warnings while a run can still be saved: far from the reference, better on pairs and worse by the scorer, updates
that bfloat16 rounds away."""

import logging
from collections.abc import Iterable, Mapping
from statistics import fmean, variance
from typing import Annotated, Any

import lightning as L
import torch
from torch import Tensor

from lightning_dpo.samples import SampleCallback
from lightning_dpo.tracking import annotate

log = logging.getLogger(__name__)

KL = (
    "far from the reference at step {step}: KL {kl:.1f} nats per completion, beyond warn_kl={limit:g}. What the loss "
    "learnt from pairs near the reference says little out here: read samples.jsonl. What helps: a larger beta, "
    "a lower optimizer.lr, fewer epochs, loss=ipo; warn_kl=null silences this"
)
SCORER = (
    "better on pairs, worse by the scorer, at step {step}: since the start the held-out accuracy rose from "
    "{accuracy_then:.3f} to {accuracy:.3f} while the scorer's {name} fell from {then:.3g} to {now:.3g}, more than "
    "twice its standard error. The policy over-optimises the loss: read samples.jsonl. What helps: a larger beta, "
    "a lower optimizer.lr, fewer epochs, and pairs that the policy itself could have written"
)
ROUNDING = (
    "optimizer.lr={lr:g} is small for weights in bfloat16: a step of that size rounds to nothing for {share:.0%} of "
    "them, so most of the training is lost. What helps: float32 weights under bf16 arithmetic, model.dtype=float32 "
    "with trainer.precision=bf16-mixed; or optimizer=adamw_stochastic, whose rounding is right on average"
)
LOST = 0.1
"""Share of the weights that a step must leave unchanged before it is worth a warning."""


class CollapseWarning(L.Callback):
    """Warns once in a run of each: `val/kl` beyond a limit; held-out accuracy up while a scorer's mean fell by more
    than twice its standard error, both since the first validation. In train.log, on the terminal and in W&B's summary.

    Args:
        samples: whose completions are scored; it comes before this one among a trainer's callbacks.
        warn_kl: nats per completion; None: no limit.
    """

    def __init__(self, samples: SampleCallback, warn_kl: Annotated[float, "(0, inf)"] | None):
        self.samples, self.warn_kl = samples, warn_kl
        self.accuracy: float | None = None
        self.scores: dict[str, list[float]] = {}
        self.warned: list[str] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        kl, accuracy = metrics.get("val/kl"), metrics.get("val/rewards/accuracies")
        if self.warn_kl is not None and kl is not None and kl > self.warn_kl:
            self._warn(trainer, "kl", KL.format(step=trainer.global_step, kl=kl, limit=self.warn_kl))
        scores = _scores(self.samples)
        if accuracy is None or not scores:
            return
        if self.accuracy is None:
            # Where policy = reference every pair is a tie, and counts as wrong: a rise from there is one from a coin's.
            self.accuracy, self.scores = accuracy or 0.5, scores
            return
        for name in [n for n in scores if accuracy > self.accuracy and fell(self.scores[n], scores[n])]:
            told = {"name": name, "then": fmean(self.scores[name]), "now": fmean(scores[name])}
            told |= {"step": trainer.global_step, "accuracy": accuracy, "accuracy_then": self.accuracy}
            self._warn(trainer, f"scorer_{name}", SCORER.format(**told))

    def _warn(self, trainer: L.Trainer, name: str, text: str) -> None:
        if name not in self.warned and trainer.is_global_zero:
            self.warned.append(name)
            log.warning(text)
            annotate(trainer.loggers, f"warning/{name}", text)

    def state_dict(self) -> dict[str, Any]:
        return {"accuracy": self.accuracy, "scores": self.scores, "warned": self.warned}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.accuracy, self.scores = state_dict["accuracy"], dict(state_dict["scores"])
        self.warned = list(state_dict["warned"])


class RoundingWarning(L.Callback):
    """Warns at the start where an update of the learning rate's size, as Adam makes them, leaves bfloat16 weights
    unchanged."""

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        group = trainer.optimizers[0].param_groups[0]
        lr = float(group.get("initial_lr", group["lr"]))  # the schedule has begun at less
        share = lost(group["params"], lr)
        drawn = getattr(trainer.optimizers[0], "bf16_stochastic_round", False)
        if not drawn and share > LOST and trainer.is_global_zero:
            text = ROUNDING.format(lr=lr, share=share)
            log.warning(text)
            annotate(trainer.loggers, "warning/rounding", text)


def _scores(samples: SampleCallback) -> dict[str, list[float]]:
    names = samples.last[0].scores if samples.last else {}
    return {name: [completion.scores[name] for completion in samples.last] for name in names}


def fell(then: list[float], now: list[float]) -> bool:
    """Whether the mean is lower by more than twice the standard error of the difference."""
    if min(len(then), len(now)) < 2:
        return False
    error = (variance(then) / len(then) + variance(now) / len(now)) ** 0.5
    return fmean(now) < fmean(then) - 2 * error


@torch.no_grad()
def lost(parameters: Iterable[Tensor], lr: float) -> float:
    """Share of the bfloat16 weights that neither +lr nor -lr changes; of float32 weights none counts."""
    unchanged = total = 0
    for weight in (p for p in parameters if p.dtype == torch.bfloat16):
        unchanged += int((((weight + lr) == weight) & ((weight - lr) == weight)).sum())
        total += weight.numel()
    return unchanged / total if total else 0.0
