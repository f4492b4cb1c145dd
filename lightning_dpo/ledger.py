"""What a training step adds up to: exact means over its pairs, its row of metrics, and whether it is finite."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_dpo.batch import PairBatch
from lightning_dpo.losses import PairLogps
from lightning_dpo.nonfinite import NonFinite, Steps

ROWS_AT_ONCE = 10
"""Steps whose rows stay on a GPU until they are fetched together."""


class Rows:
    """Rows that no logger has got yet. Their values stay on the device, which need not be waited for at every step."""

    def __init__(self):
        self._waiting: list[tuple[int, list[str], Tensor]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, step: int, row: Mapping[str, Any], device: torch.device) -> None:
        values = [torch.as_tensor(value, dtype=torch.float64, device=device) for value in row.values()]
        self._waiting.append((step, list(row), torch.stack(values)))

    def write(self, loggers: Iterable[Any]) -> None:
        waiting, self._waiting = self._waiting, []
        for step, names, values in waiting:
            row = dict(zip(names, values.tolist(), strict=True))
            for logger in loggers:
                logger.log_metrics(row, step=step)


class PairMeans:
    """Running sums over pairs: a mean is exact whatever the micro-batches, the ranks or the size of the last batch."""

    def __init__(self):
        self.sums: Tensor | None = None
        self.names: tuple[str, ...] = ()

    def update(self, metrics: dict[str, Tensor]) -> None:
        self.names = tuple(metrics)
        ones = torch.ones_like(metrics["loss"])
        # float64: 10^6 pairs of length 10^3 leave float32's integers
        sums = torch.stack([value.double().sum() for value in (ones, *metrics.values())])
        self.sums = sums if self.sums is None else self.sums + sums

    def compute(self, all_reduce: Callable[[Tensor], Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Means by name and the number of pairs, over all ranks; then empty again.

        `all_reduce` sums a tensor over the ranks.
        """
        assert self.sums is not None, "no pair was added"
        pairs, *sums = all_reduce(self.sums).unbind()
        self.sums = None
        return {name: total / pairs for name, total in zip(self.names, sums, strict=True)}, pairs


class StepLedger:
    """The optimizer step that is under way: each micro-batch is opened and added, and the complete step is closed.

    Rows and non-finite steps wait on the device until `write`, so that a GPU is waited for once for several steps.

    Args:
        nonfinite: see DPOModule.
    """

    def __init__(self, nonfinite: NonFinite):
        self.nonfinite = nonfinite
        self._means, self._rows, self._steps = PairMeans(), Rows(), Steps()

    def open(self, loss: Any) -> None:
        """Before a micro-batch: remember the state of a loss with a memory, which a skipped step must not change."""
        if self.nonfinite == "skip":
            self._steps.begin(loss)

    def add(self, batch: PairBatch, logps: PairLogps, metrics: dict[str, Tensor]) -> None:
        """A micro-batch; each of the metrics is [pair]."""
        self._means.update(metrics)
        self._steps.add(batch, logps, metrics["loss"])

    def divide(self, gradients: list[Tensor], trainer: L.Trainer) -> dict[str, Any]:
        """Turn the gradients of a sum over pairs into those of the mean over the step's pairs; returns the means."""
        means, pairs = self._means.compute(partial(trainer.strategy.reduce, reduce_op="sum"))  # type: ignore[arg-type]
        # Lightning divided the sum by the micro-batches of a full window, and data parallelism by the ranks.
        undone = trainer.accumulate_grad_batches * trainer.world_size
        for gradient in gradients:
            gradient.mul_(undone / pairs.to(gradient.dtype))
        return means

    def close(self, row: Mapping[str, Any], trainer: L.Trainer, optimizer: Optimizer, loss: Any) -> None:
        """The step is complete, and its gradients are the mean's. `row` is its row of metrics.

        Errors: NonFiniteError where it is not finite and `nonfinite` is "stop".
        """
        step = trainer.global_step + 1  # this one counts already: the number of optimizer steps done
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        self._steps.close(step, row["train/loss"], row["train/grad_norm"], scaled)
        device = trainer.strategy.root_device
        if step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._rows.add(step, row, device)
        if self.nonfinite == "skip":
            self._steps.skip(trainer, optimizer, loss)
        if len(self._rows) >= (1 if device.type == "cpu" else ROWS_AT_ONCE):
            self.write(trainer)

    def write(self, trainer: L.Trainer) -> None:
        """Give the loggers the rows of the steps so far, and check those steps.

        Errors: NonFiniteError where one was not finite, from then on at every call.
        """
        self._rows.write(trainer.loggers)
        self.check(trainer)

    def check(self, trainer: L.Trainer) -> None:
        """Errors: NonFiniteError where a step was not finite."""
        self._steps.check(trainer)
