"""Sums of losses.

Shape [pair], summed over tokens, nats: u = log π(chosen)/π_ref(chosen), v = log π(rejected)/π_ref(rejected), h = u - v.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from lightning_dpo.losses.needs import needs_of
from lightning_dpo.losses.pairwise import dpo
from lightning_dpo.losses.sides import bco_pair
from lightning_dpo.losses.types import Loss, NonNegative, PairLogps, PairLoss, Positive, pair_loss
from lightning_dpo.losses.without_reference import sft
from lightning_dpo.signatures import check_arguments


def rpo(logps: PairLogps, *, beta: Positive, nll_weight: NonNegative = 1.0) -> PairLoss:
    r"""DPO plus the likelihood of the chosen response (Iterative Reasoning PO, RPO).

        L = -log σ(βh) - λ log π(chosen)/n_chosen

    Args:
        beta: as in DPO.
        nll_weight: weight λ of the likelihood per token.

    Returns log 2 plus λ times the chosen response's negative log-likelihood per token where the policy equals the
    reference. Rewards and margin are DPO's.

    References: Pang et al. 2024 (arXiv 2404.19733); Liu et al. 2024 (arXiv 2405.16436).
    """
    return _sum(logps, (1.0, partial(dpo, beta=beta)), (nll_weight, sft))


def mpo(
    logps: PairLogps, *, beta: Positive, wp: NonNegative = 0.8, wq: NonNegative = 0.2, wg: NonNegative = 1.0
) -> PairLoss:
    r"""Mixed Preference Optimization: preference, quality and generation.

        L = -wp log σ(βh) - wq [log σ(βu) + log σ(-βv)] - wg log π(chosen)/n_chosen

    Args:
        beta: as in DPO.
        wp, wq, wg: weights of DPO, of BCO without its shift, and of the likelihood per token.

    Returns (wp + 2 wq) log 2 plus wg times the chosen response's negative log-likelihood per token where the policy
    equals the reference. Rewards and margin are DPO's.

    References: Wang et al. 2024 (arXiv 2411.10442).
    """
    return _sum(logps, (wp, partial(dpo, beta=beta)), (wq, partial(bco_pair, beta=beta)), (wg, sft))


class Mix(nn.Module):
    r"""Any weighted sum of losses.

        L = Σ_i w_i L_i

    Args:
        terms: losses by name; rewards and margin are those of the first.
        weights: a weight for each name.

    The value where the policy equals the reference is the weighted sum of the terms' values.

    References: none.
    """

    def __init__(self, terms: Mapping[str, Loss], weights: Mapping[str, NonNegative]):
        super().__init__()
        if not terms or set(terms) != set(weights) or min(weights.values()) < 0:
            raise ValueError(
                "loss.terms and loss.weights must name the same losses, at least one, with weights of 0 or more; "
                f"found {list(terms)} and {dict(weights)}"
            )
        for term in terms.values():
            if isinstance(term, partial):
                check_arguments(term.func, term.keywords, allow_missing=True)
        self.terms, self.weights = dict(terms), {name: float(weights[name]) for name in terms}
        self.settings = {"terms": self.terms, "weights": self.weights}
        self.remembering = nn.ModuleDict({k: v for k, v in terms.items() if isinstance(v, nn.Module)})
        declared = [needs_of(term) for term in terms.values()]
        self.needs = frozenset().union(*declared) - {"chosen_only"}
        if all("chosen_only" in what for what in declared):
            self.needs |= {"chosen_only"}

    def forward(self, logps: PairLogps) -> PairLoss:
        return _sum(logps, *((self.weights[name], term) for name, term in self.terms.items()))


def _sum(logps: PairLogps, *weighted: tuple[float, Any]) -> PairLoss:
    results = [(weight, loss(logps)) for weight, loss in weighted]
    first = results[0][1]
    total = torch.stack([weight * result.loss for weight, result in results]).sum(0)
    return pair_loss(total, first.chosen_reward, first.rejected_reward, first.margin)
