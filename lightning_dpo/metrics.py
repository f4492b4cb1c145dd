"""Every plotted name and its formula."""

import torch
from torch import Tensor

from lightning_dpo.losses.types import PairLogps, PairLoss


@torch.no_grad()
def pair_metrics(logps: PairLogps, result: PairLoss, chosen_only: bool = False) -> dict[str, Tensor]:
    """Each metric per pair, shape [pair]; a run logs their means under `train/` and `val/`.

    Rewards and losses are in the loss's own unit, logps in nats, lengths in tokens; accuracies are 0 or 1. A tie counts
    as wrong, as in other trainers: where the policy equals the reference the accuracy is 0, not 1/2.
    With `chosen_only`, metrics of the rejected side and comparisons with it are left out.

    `displacement/*` splits the log-ratio margin, in nats, into the rise of the chosen response over the reference,
    `chosen_up`, and the fall of the rejected one, `rejected_down`. A negative `chosen_up` is likelihood displacement.
    `*_per_token` is each side's log-ratio divided by its length.
    """
    chosen_tokens, rejected_tokens = logps.lengths()
    metrics = {
        "loss": result.loss,
        "loss_margin": result.margin,
        "rewards/chosen": result.chosen_reward,
        "rewards/rejected": result.rejected_reward,
        "rewards/margins": result.chosen_reward - result.rejected_reward,
        "rewards/accuracies": result.chosen_reward > result.rejected_reward,
        "logps/chosen": logps.chosen,
        "logps/rejected": logps.rejected,
        "lengths/chosen": chosen_tokens,
        "lengths/rejected": rejected_tokens,
    }
    if logps.ref_chosen is not None:
        u, v = logps.log_ratios()
        metrics |= {
            "displacement/chosen_below_reference": u < 0,
            "displacement/chosen_up": u,
            "displacement/rejected_down": -v,
            "displacement/chosen_per_token": u / chosen_tokens,
            "displacement/rejected_per_token": v / rejected_tokens,
        }
    two_sided = ("rejected", "margin", "accuracies")
    kept = [n for n in metrics if not (chosen_only and any(word in n for word in two_sided))]
    return {name: metrics[name].detach() for name in kept}
