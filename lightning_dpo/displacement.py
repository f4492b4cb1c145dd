"""A warning for the well-known trap: the margin grows because the chosen responses fall less than the rejected ones."""

import logging
from collections.abc import Mapping
from typing import Any

import lightning as L

from lightning_dpo.tracking import annotate

log = logging.getLogger(__name__)

FALL = 0.1
"""Nats per token that the held-out chosen responses lose before it is worth a warning: each of their tokens is then a
tenth less likely. On the bundled task at beta 0.1, ipo stays below (0.05) and dpo does not (0.2)."""

WARNING = (
    "likelihood displacement at step {step}: since the start the held-out chosen responses have lost {fall:.2f} nats "
    "per token ({chosen:.1f} per response), and the margin grew by {margin:.1f} nats only because the rejected ones "
    "fell further. The probability went to responses of neither kind: read samples.jsonl. What helps: loss=dpop, rpo "
    "or cal_dpo, which hold the chosen log-probability; loss=ipo, which stops at its margin; a larger beta; a lower "
    "optimizer.lr; leaving out the pairs with a high CHES score (lightning_dpo.ches)"
)


class DisplacementWarning(L.Callback):
    """Warns once in a run, on the terminal, in train.log and in the W&B summary, when the margin log π(chosen) -
    log π(rejected) has grown since the first validation while log π(chosen) fell by `FALL` nats per token or more."""

    def __init__(self):
        self.start: dict[str, float] | None = None
        self.warned = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if "val/logps/rejected" not in trainer.callback_metrics:
            return  # a loss of the chosen side only
        now = {side: float(trainer.callback_metrics[f"val/logps/{side}"]) for side in ("chosen", "rejected")}
        self.start = self.start or now
        chosen, rejected = (now[side] - self.start[side] for side in now)
        fall = -chosen / float(trainer.callback_metrics["val/lengths/chosen"])
        if self.warned or fall < FALL or chosen <= rejected:
            return
        self.warned = True
        if trainer.is_global_zero:
            text = WARNING.format(step=trainer.global_step, fall=fall, chosen=-chosen, margin=chosen - rejected)
            log.warning(text)
            annotate(trainer.loggers, "warning/displacement", text)

    def state_dict(self) -> dict[str, Any]:
        return {"start": self.start, "warned": self.warned}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.start, self.warned = state_dict["start"], state_dict["warned"]
