"""A step whose loss or gradient is no number: found without waiting for the GPU, and written down row by row."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_dpo.batch import PairBatch
from lightning_dpo.errors import NonFiniteError
from lightning_dpo.files import LineFile
from lightning_dpo.losses.types import PairLogps

log = logging.getLogger(__name__)

NonFinite = Literal["stop", "skip"]
"""What a step that is not finite does: it ends the run, or it leaves the weights as they are."""

FILE = "nonfinite.jsonl"

REMEDIES = (
    "what helps: a lower optimizer.lr or a longer scheduler.warmup_steps, trainer.gradient_clip_val, "
    "trainer.precision=32-true, taking the rows out; nonfinite=skip leaves such steps out"
)


class Rows(NamedTuple):
    """The pairs of a micro-batch: what they are, on the CPU, and what they gave, where the policy is."""

    index: Tensor
    lengths: dict[str, Tensor]
    values: dict[str, Tensor]


class Step(NamedTuple):
    number: int
    finite: Tensor
    grad_norm: Tensor
    parts: list[Rows]


class Steps:
    """The optimizer steps since the last look at them. Looking waits for the device once, however many they are."""

    def __init__(self):
        self.parts: list[Rows] = []
        self.steps: list[Step] = []
        self.broken: str | None = None
        self.memory: dict[str, Tensor] = {}

    def begin(self, loss: Any) -> None:
        """Before each micro-batch: keep what a loss remembers as it was before the step."""
        if not self.parts and isinstance(loss, torch.nn.Module):
            self.memory = {name: value.clone() for name, value in loss.state_dict().items()}

    def add(self, batch: PairBatch, logps: PairLogps, loss: Tensor) -> None:
        """A micro-batch of the step that is under way; `loss` is [pair]."""
        lengths = {side: getattr(batch, side).lengths for side in ("prompt", "chosen", "rejected")}
        values = {"loss": loss, "logp_chosen": logps.chosen, "logp_rejected": logps.rejected}
        if logps.ref_chosen is not None and logps.ref_rejected is not None:
            values |= {"ref_logp_chosen": logps.ref_chosen, "ref_logp_rejected": logps.ref_rejected}
        self.parts.append(Rows(batch.index, lengths, {name: value.detach() for name, value in values.items()}))

    def close(self, number: int, loss: Tensor, grad_norm: Tensor, scaled: bool) -> None:
        """The step is complete.

        Args:
            loss: its mean, which is finite if and only if every pair's is.
            scaled: gradients are scaled for float16, and an infinite one is the scaler's business.
        """
        finite = loss.isfinite() if scaled else loss.isfinite() & grad_norm.isfinite()
        self.steps.append(Step(number, finite, grad_norm, self.parts))
        self.parts = []

    def look(self) -> list[Step]:
        """The steps that were not finite; then forget all."""
        steps, self.steps = self.steps, []
        if not steps:
            return []
        finite = torch.stack([step.finite for step in steps]).tolist()
        return [step for step, good in zip(steps, finite, strict=True) if not good]

    def check(self, trainer: L.Trainer) -> None:
        """Look. Errors: NonFiniteError where a step was not finite, from then on at every look."""
        if bad := self.look():
            self.broken = f"{_written(bad, trainer)}; {REMEDIES}"
        if self.broken:
            raise NonFiniteError(self.broken)

    def skip(self, trainer: L.Trainer, optimizer: Optimizer, loss: Any) -> None:
        """Take the gradients of a step that is not finite, so that the optimizer changes neither weights nor moments,
        and what the loss remembers of it. This must know before the optimizer steps, so it waits for the device."""
        if bad := self.look():
            log.warning("%s; step left out", _written(bad, trainer))
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                parameter.grad = None
            if self.memory:
                loss.load_state_dict(self.memory)


def _written(bad: list[Step], trainer: L.Trainer) -> str:
    pairs = getattr(getattr(trainer, "datamodule", None), "train_pairs", None)
    return write(bad, Path(trainer.default_root_dir), lambda row: pairs and pairs.where(row))


def rows_of(step: Step, where: Callable[[int], str | None]) -> list[dict[str, Any]]:
    """The pairs of a step whose numbers are not finite; all of them, where only the gradient is not."""
    rows = []
    for part in step.parts:
        values = {name: value.float().tolist() for name, value in part.values.items()}
        for i, index in enumerate(part.index.tolist()):
            tokens = {f"tokens_{side}": int(lengths[i]) for side, lengths in part.lengths.items()}
            row = {"step": step.number, "row": index, "where": where(index), **tokens}
            rows.append(row | {name: value[i] for name, value in values.items()})
    offending = [row for row in rows if not all(_finite(value) for value in row.values())]
    return offending or rows


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or value - value == 0


def write(steps: list[Step], folder: Path, where: Callable[[int], str | None]) -> str:
    """Append the offending rows to `nonfinite.jsonl`; returns what to say. NaN and Infinity stand there by name."""
    rows = [row for step in steps for row in rows_of(step, where)]
    folder.mkdir(parents=True, exist_ok=True)
    LineFile(folder / FILE).append(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    first, norm = rows[0], float(steps[0].grad_norm)
    what = "the gradient" if all(_finite(value) for value in first.values()) else "the loss"
    named = first["where"] or f"row {first['row']}"
    return (
        f"step {steps[0].number}: {what} is not finite (loss {first['loss']:g}, log-probabilities "
        f"{first['logp_chosen']:g} and {first['logp_rejected']:g} of {named}, gradient norm {norm:g}); "
        f"{len(rows)} row{'s' * (len(rows) > 1)} in {folder / FILE}"
    )


def check_mean(name: str, value: Tensor) -> None:
    """Errors: NonFiniteError for a mean that is no number."""
    if not value.isfinite():
        raise NonFiniteError(f"{name} is {float(value)}, not finite; {REMEDIES}")


def check_weights(policy: torch.nn.Module) -> None:
    """Errors: NonFiniteError that names the first parameters with a NaN or an infinity. Waits for the device once."""
    named = list(policy.named_parameters())
    bad = (~torch.stack([parameter.detach().isfinite().all() for _, parameter in named])).nonzero().flatten().tolist()
    if bad:
        names = ", ".join(named[i][0] for i in bad[:3])
        raise NonFiniteError(f"weights that are not finite are not saved: {names}; {REMEDIES}")
