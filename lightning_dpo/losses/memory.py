"""Losses with a memory: modules with buffers, which a checkpoint keeps. They learn in training only."""

from typing import Annotated

import torch
from torch import Tensor, nn

from lightning_dpo.losses.batch_level import beta_dpo
from lightning_dpo.losses.sides import bco_pair
from lightning_dpo.losses.types import PairLogps, PairLoss, Positive
from lightning_dpo.signatures import check_arguments

Share = Annotated[float, "[0, 1)"]


class RunningMean(nn.Module):
    """Mean of the numbers that it was given: of all alike, or, with a momentum, mostly of the latest.

    Args:
        momentum: share that the mean keeps at each new number; None weighs all numbers alike.
        start: the mean before the first number; with momentum None it does not count.
    """

    mean: Tensor
    count: Tensor

    def __init__(self, momentum: float | None = None, start: float = 0.0):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.tensor(start, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def update(self, value: Tensor) -> None:
        self.count = self.count + 1
        share = 1 / self.count.double() if self.momentum is None else 1 - self.momentum
        self.mean = self.mean + share * (value.detach() - self.mean)

    def _apply(self, fn, recurse=True):
        # A cast to bf16 would freeze the mean: its 8 bits lose small changes. Only the device follows.
        exact = self.mean.clone()
        super()._apply(fn, recurse)
        self.mean = exact.to(self.mean.device)
        return self


class BCOPair(nn.Module):
    r"""Binary Classifier Optimization with its running reward shift.

        L = -log σ(βu - δ) - log σ(-(βv - δ)),    δ = running mean of the rewards βu, βv

    Args:
        beta: as in DPO.
        shift: True keeps δ, over all training batches so far and this one; False leaves it at 0 (TRL since 1.0).

    Returns 2 log 2 for each pair where the policy equals the reference, at the start. The margin is βu - βv.

    References: Jung et al. 2024 (arXiv 2404.04656).
    """

    def __init__(self, beta: Positive, shift: bool = True):
        super().__init__()
        self.settings = {"beta": beta, "shift": shift}
        check_arguments(BCOPair, self.settings)
        self.needs = frozenset({"whole_batch"} if shift else ())
        self.delta = RunningMean()

    def forward(self, logps: PairLogps) -> PairLoss:
        beta = self.settings["beta"]
        if self.settings["shift"] and self.training:
            u, v = logps.log_ratios()
            self.delta.update(beta * (u.mean() + v.mean()) / 2)
        return bco_pair(logps, beta=beta, delta=self.delta.mean.to(logps.chosen))


class BetaDPO(nn.Module):
    r"""β-DPO with its running mean gap.

        L = -log σ(β_b h),    β_b = max(0.001, β(1 + a(mean h - m0))), no gradient

    Args:
        beta, a, drop: as in beta_dpo.
        m0: the mean gap before the first batch, nats.
        momentum: share that the mean gap keeps at each training batch; the batch itself is in it.

    Returns log 2 on average over pairs where the policy equals the reference. The margin is β_b h.

    References: Wu et al. 2024 (arXiv 2407.08639), as in the authors' code.
    """

    def __init__(self, beta: Positive, a: float = 0.6, m0: float = 0.0, momentum: Share = 0.9, drop: Share = 0.2):
        super().__init__()
        self.settings = {"beta": beta, "a": a, "m0": m0, "momentum": momentum, "drop": drop}
        check_arguments(BetaDPO, self.settings)
        self.needs = frozenset({"whole_batch"})
        self.gap = RunningMean(momentum, m0)

    def forward(self, logps: PairLogps) -> PairLoss:
        if self.training:
            u, v = logps.log_ratios()
            self.gap.update((u - v).mean())
        beta, a, drop = (self.settings[key] for key in ("beta", "a", "drop"))
        return beta_dpo(logps, beta=beta, a=a, m0=self.gap.mean.to(logps.chosen), drop=drop)
