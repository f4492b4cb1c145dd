r"""Losses whose value for a pair depends on the other pairs of the batch: a step must be one micro-batch on one rank.

Shape [pair], summed over tokens, nats: u = log π(chosen)/π_ref(chosen), v = log π(rejected)/π_ref(rejected), h = u - v.
"""

import math
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lightning_dpo.losses.needs import needs
from lightning_dpo.losses.numerics import sigmoid
from lightning_dpo.losses.types import PairLogps, PairLoss, Positive, Smoothing, pair_loss


@needs("whole_batch", "equal_weights")
def aot(logps: PairLogps, *, beta: Positive, label_smoothing: Smoothing = 0.0) -> PairLoss:
    r"""Alignment via Optimal Transport, paired: the policy's margins exceed the reference's rank by rank.

        L = -(1-ε) log σ(βg) - ε log σ(-βg),    g = (S_chosen - S_rejected) - (R_chosen - R_rejected of the same rank)

    Args:
        logps: S and R are its log-probabilities under policy and reference.
        beta: as in DPO.
        label_smoothing: assumed share ε of flipped labels.

    Returns log 2 for each pair where the policy equals the reference. A value belongs to the pair whose S_chosen -
    S_rejected it compares. The margin is βg.

    References: Melnyk et al. 2024 (arXiv 2406.05882).
    """
    u, v = logps.log_ratios()
    ref_chosen, ref_rejected = logps.reference()
    margins = logps.chosen - logps.rejected
    h = beta * (margins - _of_same_rank(ref_chosen - ref_rejected, margins))
    loss = -(1 - label_smoothing) * logsigmoid(h) - label_smoothing * logsigmoid(-h)
    return pair_loss(loss, beta * u, beta * v, margin=h)


@needs("whole_batch", "equal_weights")
def aot_unpaired(logps: PairLogps, *, beta: Positive, label_smoothing: Smoothing = 0.0) -> PairLoss:
    r"""Alignment via Optimal Transport, unpaired: the chosen log-ratios exceed the rejected ones rank by rank.

        L = -(1-ε) log σ(βg) - ε log σ(-βg),    g = u - (v of the same rank)

    Args:
        beta: as in DPO.
        label_smoothing: assumed share ε of flipped labels.

    Returns log 2 for each pair where the policy equals the reference. A value belongs to the pair whose u it compares.
    The margin is βg.

    References: Melnyk et al. 2024 (arXiv 2406.05882).
    """
    u, v = logps.log_ratios()
    h = beta * (u - _of_same_rank(v, u))
    loss = -(1 - label_smoothing) * logsigmoid(h) - label_smoothing * logsigmoid(-h)
    return pair_loss(loss, beta * u, beta * v, margin=h)


def _of_same_rank(values: Tensor, others: Tensor) -> Tensor:
    """For each of `others`, the value with the same rank among `values`."""
    return values.sort().values[others.argsort(stable=True).argsort()]


@needs("whole_batch")
def kto_pair(logps: PairLogps, *, beta: Positive) -> PairLoss:
    r"""Kahneman-Tversky Optimization on pairs: each side against the batch's mean log-ratio of the other.

        L = ½ [1 - σ(β(u - z_rejected))] + ½ [1 - σ(β(z_chosen - v))],    z = max(0, batch mean), no gradient

    Args:
        beta: as in DPO.

    Returns 1/2 for each pair where the policy equals the reference. The margin is βh.

    References: Ethayarajh et al. 2024 (arXiv 2402.01306); the form on pairs is TRL's before 0.9, without its gradient
    through z.
    """
    u, v = logps.log_ratios()
    z_chosen, z_rejected = (torch.relu(x.mean()).detach() for x in (u, v))
    loss = 0.5 * sigmoid(-beta * (u - z_rejected)) + 0.5 * sigmoid(-beta * (z_chosen - v))
    return pair_loss(loss, beta * u, beta * v, margin=beta * (u - v))


@needs("whole_batch")
def beta_dpo(
    logps: PairLogps,
    *,
    beta: Positive,
    a: float = 0.6,
    m0: float | Tensor = 0.0,
    drop: Annotated[float, "[0, 1)"] = 0.0,
) -> PairLoss:
    r"""β-DPO: a larger β for batches with large gaps, without outliers.

        L = -log σ(β_b h),    β_b = max(0.001, β(1 + a(mean h - m0))), no gradient

    Args:
        beta: β before it is adapted.
        a: how fast β follows the batch's mean gap.
        m0: the mean gap, in nats, at which β is not changed. BetaDPO keeps it as a running mean.
        drop: share of the pairs to leave out, those with h farthest from m0. Their loss is 0, and the other losses are
            scaled so that the batch's mean is the mean over the kept pairs. The authors' code draws the pairs to keep
            with Gaussian weights around m0; this function keeps the most likely ones.

    Returns log 2 for each pair where the policy equals the reference and none is dropped. The margin is β_b h.

    References: Wu et al. 2024 (arXiv 2407.08639), as in the authors' code, not confirmed from the paper.
    """
    u, v = logps.log_ratios()
    h = u - v
    distance = (h.detach() - m0).abs()
    kept = distance.argsort(stable=True).argsort() < len(h) - math.floor(drop * len(h))
    share = kept.to(h) / kept.sum() * len(h)
    adapted = (beta * (1 + a * ((share * h.detach()).mean() - m0))).clamp(min=1e-3)
    return pair_loss(-share * logsigmoid(adapted * h), beta * u, beta * v, margin=adapted * h)


@needs("whole_batch", "equal_weights")
def dr_dpo(logps: PairLogps, *, beta: Positive, beta_prime: Positive = 1.0) -> PairLoss:
    r"""Dr. DPO: distributionally robust to flipped pairs, as a pair with a large loss counts less.

        L = -β' log mean(exp(log σ(βh)/β')),    one value for the batch

    Args:
        beta: as in DPO.
        beta_prime: β'; the limit at infinity is DPO, where every pair counts alike.

    Returns the batch's value at every pair, so that its mean is the batch's loss: log 2 where the policy equals the
    reference. The margin is βh.

    References: Wu et al. 2024 (arXiv 2407.07880). Form and default from memory, not confirmed from the paper.
    """
    u, v = logps.log_ratios()
    h = beta * (u - v)
    loss = -beta_prime * ((logsigmoid(h) / beta_prime).logsumexp(0) - math.log(len(h)))
    return pair_loss(loss.expand_as(h), beta * u, beta * v, margin=h)
