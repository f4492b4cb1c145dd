"""Losses with a memory: modules with buffers, which checkpoints keep. Buffers are updated in training mode only."""

from typing import Annotated

import torch
from torch import Tensor, nn

from lightning_dpo.losses.batch_level import beta_dpo
from lightning_dpo.losses.sides import bco_pair
from lightning_dpo.losses.types import PairLogps, PairLoss, Positive
from lightning_dpo.signatures import check_arguments

Share = Annotated[float, "[0, 1)"]


class RunningMean(nn.Module):
    """The mean of all numbers so far, or, with a momentum, their exponential moving average.

    Args:
        momentum: share that the mean keeps at each new number; None: the mean of all numbers.
        start: the mean before the first number; without a momentum it has no effect afterwards.
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
        # Follow a change of device but not of dtype: in bfloat16, small changes of the mean would be lost.
        exact = self.mean.clone()
        super()._apply(fn, recurse)
        self.mean = exact.to(self.mean.device)
        return self


class BCOPair(nn.Module):
    r"""Binary Classifier Optimization with a running reward shift.

        L = -log σ(βu - δ) - log σ(-(βv - δ)),    δ = running mean of the rewards βu, βv

    Args:
        beta: as in DPO.
        shift: True: δ is the mean over all training batches, this one included; False: 0 (TRL since 1.0).

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
    r"""β-DPO with a running mean gap.

        L = -log σ(β_b h),    β_b = max(0.001, β(1 + a(mean h - m0))), no gradient

    Args:
        beta, a, drop: as in beta_dpo.
        m0: the mean gap before the first batch, nats.
        momentum: share that m0 keeps at each training batch. The batch is counted before its loss is computed.

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
