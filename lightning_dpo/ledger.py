"""What an optimizer step adds up to: exact means over its pairs, its row of metrics, and whether it is finite."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_dpo import nonfinite
from lightning_dpo.batch import PairBatch
from lightning_dpo.errors import NonFiniteError
from lightning_dpo.losses import PairLogps
from lightning_dpo.nonfinite import MicroBatch, NonFinite, Step

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 10
"""Rows of metrics that stay on a GPU until they are fetched together."""


def number_steps_from_one(trainer: L.Trainer) -> None:
    """Number the rows of Lightning and its callbacks as this project's: step k is the k-th, also while it lasts.
    Lightning counts the steps before it, and keeps counting from here, in checkpoints too."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = 1


class PairMeans:
    """Running sums over pairs: a mean is exact whatever the micro-batches, the ranks or the size of the last batch."""

    def __init__(self):
        self.sums: Tensor | None = None
        self.names: tuple[str, ...] = ()

    def update(self, metrics: dict[str, Tensor]) -> None:
        self.names = tuple(metrics)
        ones = torch.ones_like(metrics["loss"])
        # float64: the sum of 10^6 lengths of 10^3 tokens exceeds the integers of float32
        sums = torch.stack([value.double().sum() for value in (ones, *metrics.values())])
        self.sums = sums if self.sums is None else self.sums + sums

    def compute(self, all_reduce: Callable[[Tensor], Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Means by name and the number of pairs, over all ranks. Resets the sums.

        `all_reduce` sums a tensor over the ranks.
        """
        assert self.sums is not None, "no pair was added"
        pairs, *sums = all_reduce(self.sums).unbind()
        self.sums = None
        return {name: total / pairs for name, total in zip(self.names, sums, strict=True)}, pairs


class StepLedger:
    """The current optimizer step: `open` and `add` each micro-batch, then `divide` and `close` the complete step.

    Rows of metrics, and whether their steps are finite, stay on the device until `write`: several steps wait for a GPU
    only once.

    Args:
        nonfinite: see DPOModule.
    """

    def __init__(self, nonfinite: NonFinite):
        self.nonfinite = nonfinite
        self._means = PairMeans()
        self._micro_batches: list[MicroBatch] = []
        self._memory: dict[str, Tensor] = {}
        self._steps: list[Step] = []
        self._rows: list[tuple[int, list[str], Tensor]] = []
        self._error: str | None = None

    def open(self, loss: Any) -> None:
        """Before a micro-batch: copy the state of a loss with a memory, which a skipped step must not change."""
        if self.nonfinite == "skip" and not self._micro_batches and isinstance(loss, torch.nn.Module):
            self._memory = {name: value.clone() for name, value in loss.state_dict().items()}

    def add(self, batch: PairBatch, logps: PairLogps, metrics: dict[str, Tensor]) -> None:
        """A micro-batch; each of the metrics has shape [pair]."""
        self._means.update(metrics)
        self._micro_batches.append(MicroBatch.of(batch, logps, metrics["loss"]))

    def divide(self, gradients: list[Tensor], trainer: L.Trainer) -> dict[str, Any]:
        """Turn the gradients of a sum over pairs into those of the mean over the step's pairs; returns the means."""
        means, pairs = self._means.compute(partial(trainer.strategy.reduce, reduce_op="sum"))  # type: ignore[arg-type]
        # Lightning divided the sum by the micro-batches of a full window, and data parallelism by the ranks.
        undone = trainer.accumulate_grad_batches * trainer.world_size
        for gradient in gradients:
            gradient.mul_(undone / pairs.to(gradient.dtype))
        return means

    def close(self, row: Mapping[str, Any], trainer: L.Trainer, optimizer: Optimizer, loss: Any) -> None:
        """After the last micro-batch and `divide`. `row` is the step's row of metrics.

        Errors: NonFiniteError where a step is not finite and `nonfinite` is "stop".
        """
        number, device = trainer.global_step + 1, trainer.strategy.root_device
        # The mean loss is finite if and only if every pair's is. Infinite gradients in float16 are left to the scaler.
        finite, grad_norm = row["train/loss"].isfinite(), row["train/grad_norm"]
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            finite = finite & grad_norm.isfinite()
        self._steps.append(Step(number, finite, grad_norm, self._micro_batches))
        self._micro_batches = []
        if number % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            values = [torch.as_tensor(value, dtype=torch.float64, device=device) for value in row.values()]
            self._rows.append((number, list(row), torch.stack(values)))
        if self.nonfinite == "skip":
            self._skip(trainer, optimizer, loss)
        if len(self._rows) >= (1 if device.type == "cpu" else ROWS_AT_ONCE):
            self.write(trainer)

    def write(self, trainer: L.Trainer) -> None:
        """Pass the rows so far to the loggers, and check their steps.

        Errors: NonFiniteError where one was not finite, from then on at every call.
        """
        rows, self._rows = self._rows, []
        for number, names, values in rows:
            row = dict(zip(names, values.tolist(), strict=True))
            for logger in trainer.loggers:
                logger.log_metrics(row, step=number)
        self.check(trainer)

    def check(self, trainer: L.Trainer) -> None:
        """Errors: NonFiniteError where a step was not finite."""
        if bad := self._nonfinite_steps():
            self._error = f"{nonfinite.write(bad, trainer)}; {nonfinite.REMEDIES}"
        if self._error:
            raise NonFiniteError(self._error)

    def _nonfinite_steps(self) -> list[Step]:
        """The steps since the last call that are not finite. Waits for the device once."""
        steps, self._steps = self._steps, []
        finite = torch.stack([step.finite for step in steps]).tolist() if steps else []
        return [step for step, good in zip(steps, finite, strict=True) if not good]

    def _skip(self, trainer: L.Trainer, optimizer: Optimizer, loss: Any) -> None:
        """If the step is not finite, keep the optimizer from changing weights and moments, and restore the loss's
        memory. The optimizer steps right after, so this cannot wait until `write`."""
        if bad := self._nonfinite_steps():
            log.warning("%s; step skipped", nonfinite.write(bad, trainer))
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                parameter.grad = None
            if self._memory:
                loss.load_state_dict(self._memory)
