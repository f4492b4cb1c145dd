"""Every plotted name and its formula, and their exact means over pairs."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_dpo.losses.types import PairLogps, PairLoss

ROWS_AT_ONCE = 10
"""Steps whose rows stay on a GPU until they are fetched together."""


@torch.no_grad()
def pair_metrics(logps: PairLogps, result: PairLoss, chosen_only: bool = False) -> dict[str, Tensor]:
    """Each metric per pair, shape [pair]; a run logs their means under `train/` and `val/`.

    Rewards and losses are in the loss's own unit, logps in nats, lengths in tokens; accuracies are 0 or 1. A tie counts
    as wrong, as in other trainers: where the policy equals the reference the accuracy is 0, not 1/2.
    Where only the chosen side was scored, what compares the sides is left out.

    `displacement/*` says how the margin came about (nats, against the reference): the chosen response went up by
    `chosen_up` and the rejected one down by `rejected_down`, which add up to the log-ratio margin; a negative
    `chosen_up` is likelihood displacement. `*_per_token` is each side's log-ratio by its own length.
    """
    metrics = {
        "loss": result.loss,
        "loss_margin": result.margin,
        "rewards/chosen": result.chosen_reward,
        "rewards/rejected": result.rejected_reward,
        "rewards/margins": result.chosen_reward - result.rejected_reward,
        "rewards/accuracies": result.chosen_reward > result.rejected_reward,
        "logps/chosen": logps.chosen,
        "logps/rejected": logps.rejected,
        "lengths/chosen": logps.chosen_tokens,
        "lengths/rejected": logps.rejected_tokens,
    }
    if logps.ref_chosen is not None:
        u, v = logps.log_ratios()
        metrics |= {
            "displacement/chosen_below_reference": u < 0,
            "displacement/chosen_up": u,
            "displacement/rejected_down": -v,
            "displacement/chosen_per_token": u / logps.chosen_tokens,
            "displacement/rejected_per_token": v / logps.rejected_tokens,
        }
    two_sided = ("rejected", "margin", "accuracies")
    kept = [n for n in metrics if not (chosen_only and any(word in n for word in two_sided))]
    return {name: metrics[name].detach() for name in kept}


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
