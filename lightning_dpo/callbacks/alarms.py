"""Warnings during training: likelihood displacement, over-optimisation, updates lost to rounding."""

import logging
from collections.abc import Iterable, Mapping
from statistics import fmean, variance
from typing import Annotated, Any

import lightning as L
import torch
from torch import Tensor

from lightning_dpo.loggers.wandb import annotate
from lightning_dpo.samples import SampleCallback

log = logging.getLogger(__name__)

FALL = 0.1
"""Threshold of the warning, in nats per token of the held-out chosen responses: each token is then about a tenth less
likely. On the bundled task at beta 0.1, ipo stays below (0.05) and dpo does not (0.2)."""

DISPLACEMENT = (
    "likelihood displacement at step {step}: since the start the held-out chosen responses have lost {fall:.2f} nats "
    "per token ({chosen:.1f} per response), and the margin grew by {margin:.1f} nats only because the rejected ones "
    "fell further. The probability went to other responses: read samples.jsonl. What helps: loss=dpop, rpo or "
    "cal_dpo, which keep the chosen log-probability up; loss=ipo, which stops at its margin; a larger beta; a lower "
    "optimizer.lr; removing the pairs with a high CHES score (lightning_dpo.scoring.ches)"
)
KL = (
    "far from the reference at step {step}: KL {kl:.1f} nats per completion, above warn_kl={limit:g}. The pairs are no "
    "longer like what the policy writes: read samples.jsonl. What helps: a larger beta, a lower optimizer.lr, fewer "
    "epochs, loss=ipo; warn_kl=null silences this warning"
)
SCORER = (
    "over-optimisation at step {step}: since the start the held-out accuracy rose from "
    "{accuracy_then:.3f} to {accuracy:.3f} while the scorer's {name} fell from {then:.3g} to {now:.3g}, more than "
    "twice its standard error. The loss improves and the completions do not: read samples.jsonl. What helps: a larger "
    "beta, a lower optimizer.lr, fewer epochs, and pairs that the policy itself could have written"
)
ROUNDING = (
    "optimizer.lr={lr:g} is small for weights in bfloat16: a step of that size rounds to nothing for {share:.0%} of "
    "them, and their updates are lost. What helps: float32 weights with bf16 arithmetic, model.dtype=float32 "
    "trainer.precision=bf16-mixed; or optimizer=adamw_stochastic, whose rounding is unbiased"
)
ROUNDED_AWAY = 0.1
"""Threshold of the warning: the share of weights that a step leaves unchanged."""


class WarnOnce(L.Callback):
    """Gives each kind of warning at most once: on the terminal, in train.log and in W&B's summary."""

    def __init__(self):
        self.warned: list[str] = []

    def warn(self, trainer: L.Trainer, kind: str, text: str) -> None:
        if kind not in self.warned:
            self.warned.append(kind)
            if trainer.is_global_zero:
                log.warning(text)
                annotate(trainer.loggers, f"warning/{kind}", text)


class DisplacementWarning(WarnOnce):
    """Since the first validation, log π(chosen) has fallen by `FALL` nats per token or more, while the margin
    log π(chosen) - log π(rejected) has grown, because the rejected responses have fallen further."""

    def __init__(self):
        super().__init__()
        self.start: dict[str, float] | None = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if "val/logps/rejected" not in trainer.callback_metrics:
            return  # the loss uses chosen responses only
        now = {side: float(trainer.callback_metrics[f"val/logps/{side}"]) for side in ("chosen", "rejected")}
        self.start = self.start or now
        chosen, rejected = (now[side] - self.start[side] for side in now)
        fall = -chosen / float(trainer.callback_metrics["val/lengths/chosen"])
        if fall >= FALL and chosen > rejected:
            numbers = {"step": trainer.global_step, "fall": fall, "chosen": -chosen, "margin": chosen - rejected}
            self.warn(trainer, "displacement", DISPLACEMENT.format(**numbers))

    def state_dict(self) -> dict[str, Any]:
        return {"start": self.start, "warned": bool(self.warned)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.start, self.warned = state_dict["start"], ["displacement"] * state_dict["warned"]


class CollapseWarning(WarnOnce):
    """`val/kl` exceeds a limit; or, since the first validation, held-out accuracy has risen while a scorer's mean has
    fallen by more than twice its standard error.

    Args:
        samples: provides the scored completions; must precede this callback in the trainer.
        warn_kl: nats per completion; None for no limit.
    """

    def __init__(self, samples: SampleCallback, warn_kl: Annotated[float, "(0, inf)"] | None):
        super().__init__()
        self.samples, self.warn_kl = samples, warn_kl
        self.accuracy: float | None = None
        self.scores: dict[str, list[float]] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        kl, accuracy = metrics.get("val/kl"), metrics.get("val/rewards/accuracies")
        if self.warn_kl is not None and kl is not None and kl > self.warn_kl:
            self.warn(trainer, "kl", KL.format(step=trainer.global_step, kl=kl, limit=self.warn_kl))
        last = self.samples.last
        scores = {name: [completion.scores[name] for completion in last] for name in (last[0].scores if last else ())}
        if accuracy is None or not scores:
            return
        if self.accuracy is None:
            # If policy = reference, all pairs are ties and count as wrong. Compare with chance (0.5) instead.
            self.accuracy, self.scores = accuracy or 0.5, scores
            return
        for name, values in scores.items():
            if accuracy > self.accuracy and fell_significantly(self.scores[name], values):
                numbers = {"name": name, "then": fmean(self.scores[name]), "now": fmean(values)}
                numbers |= {"step": trainer.global_step, "accuracy": accuracy, "accuracy_then": self.accuracy}
                self.warn(trainer, f"scorer_{name}", SCORER.format(**numbers))

    def state_dict(self) -> dict[str, Any]:
        return {"accuracy": self.accuracy, "scores": self.scores, "warned": self.warned}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.accuracy, self.scores = state_dict["accuracy"], dict(state_dict["scores"])
        self.warned = list(state_dict["warned"])


class RoundingWarning(WarnOnce):
    """At the start: an update of the size of the learning rate, as Adam makes, leaves bfloat16 weights unchanged."""

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        group = trainer.optimizers[0].param_groups[0]
        lr = group.get("initial_lr", group.get("lr"))  # `lr` is already the warm-up's
        if lr is None:
            return  # the optimizer chooses its own
        lr = float(lr)
        share = share_rounded_away(group["params"], lr)
        stochastic = getattr(trainer.optimizers[0], "bf16_stochastic_round", False)
        if not stochastic and share > ROUNDED_AWAY:
            self.warn(trainer, "rounding", ROUNDING.format(lr=lr, share=share))


def fell_significantly(then: list[float], now: list[float]) -> bool:
    """Whether the mean is lower by more than twice the standard error of the difference."""
    if min(len(then), len(now)) < 2:
        return False
    error = (variance(then) / len(then) + variance(now) / len(now)) ** 0.5
    return fmean(now) < fmean(then) - 2 * error


@torch.no_grad()
def share_rounded_away(parameters: Iterable[Tensor], lr: float) -> float:
    """Share of the bfloat16 weights that neither +lr nor -lr changes; 0 if all weights are float32."""
    unchanged = total = 0
    for weight in (p for p in parameters if p.dtype == torch.bfloat16):
        unchanged += int((((weight + lr) == weight) & ((weight - lr) == weight)).sum())
        total += weight.numel()
    return unchanged / total if total else 0.0
