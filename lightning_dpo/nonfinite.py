"""Steps with a NaN or infinite loss or gradient: the rows behind them, `nonfinite.jsonl`, and the errors."""

import json
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning as L
import torch
from torch import Tensor

from lightning_dpo.batch import PairBatch
from lightning_dpo.errors import NonFiniteError
from lightning_dpo.files import LineFile
from lightning_dpo.losses.types import PairLogps

NonFinite = Literal["stop", "skip"]
"""What happens at a step that is not finite: the run ends, or the weights stay as they are."""

FILE = "nonfinite.jsonl"

REMEDIES = (
    "what helps: a lower optimizer.lr or a longer scheduler.warmup_steps, trainer.gradient_clip_val, "
    "trainer.precision=32-true, removing the rows from the data; nonfinite=skip leaves such steps out"
)


class MicroBatch(NamedTuple):
    """Some pairs of a step: row numbers and lengths, on the CPU, and values by name, on the device, each [pair]."""

    index: Tensor
    lengths: dict[str, Tensor]
    values: dict[str, Tensor]

    @classmethod
    def of(cls, batch: PairBatch, logps: PairLogps, loss: Tensor) -> "MicroBatch":
        lengths = {side: getattr(batch, side).lengths for side in ("prompt", "chosen", "rejected")}
        values = {"loss": loss, "logp_chosen": logps.chosen, "logp_rejected": logps.rejected}
        if logps.ref_chosen is not None and logps.ref_rejected is not None:
            values |= {"ref_logp_chosen": logps.ref_chosen, "ref_logp_rejected": logps.ref_rejected}
        return cls(batch.index, lengths, {name: value.detach() for name, value in values.items()})


class Step(NamedTuple):
    number: int
    finite: Tensor
    grad_norm: Tensor
    micro_batches: list[MicroBatch]


def write(steps: list[Step], trainer: L.Trainer) -> str:
    """Append the offending rows to `nonfinite.jsonl`, NaN and Infinity by name; returns a message about the first."""
    folder = Path(trainer.default_root_dir)
    pairs = getattr(getattr(trainer, "datamodule", None), "train_pairs", None)
    rows = [row for step in steps for row in _offending_rows(step, pairs)]
    folder.mkdir(parents=True, exist_ok=True)
    LineFile(folder / FILE).append(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    first, norm = rows[0], float(steps[0].grad_norm)
    what = "the gradient" if _is_finite(first) else "the loss"
    where = first["where"] or f"row {first['row']}"
    return (
        f"step {steps[0].number}: {what} is not finite (loss {first['loss']:g}, log-probabilities "
        f"{first['logp_chosen']:g} and {first['logp_rejected']:g} of {where}, gradient norm {norm:g}); "
        f"{len(rows)} row{'s' * (len(rows) > 1)} in {folder / FILE}"
    )


def _offending_rows(step: Step, pairs: Any) -> list[dict[str, Any]]:
    """The pairs with a value that is not finite; all pairs where only the gradient is not finite."""
    rows = []
    for part in step.micro_batches:
        values = {name: value.float().tolist() for name, value in part.values.items()}
        for i, index in enumerate(part.index.tolist()):
            tokens = {f"tokens_{side}": int(lengths[i]) for side, lengths in part.lengths.items()}
            row = {"step": step.number, "row": index, "where": pairs and pairs.where(index), **tokens}
            rows.append(row | {name: value[i] for name, value in values.items()})
    return [row for row in rows if not _is_finite(row)] or rows


def _is_finite(row: dict[str, Any]) -> bool:
    return all(math.isfinite(value) for value in row.values() if isinstance(value, float))


def check_mean(name: str, value: Tensor) -> None:
    """Errors: NonFiniteError for a mean that is NaN or infinite."""
    if not value.isfinite():
        raise NonFiniteError(f"{name} is {float(value)}, not finite; {REMEDIES}")


def check_weights(policy: torch.nn.Module) -> None:
    """Errors: NonFiniteError that names the first parameters with a NaN or an infinity. Waits for the device once."""
    named = list(policy.named_parameters())
    bad = (~torch.stack([parameter.detach().isfinite().all() for _, parameter in named])).nonzero().flatten().tolist()
    if bad:
        names = ", ".join(named[i][0] for i in bad[:3])
        raise NonFiniteError(f"weights that are not finite are not saved: {names}; {REMEDIES}")
