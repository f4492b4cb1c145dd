r"""Other functions of a pair's log-ratio gap, and other divergences than the reverse KL.

Shape [pair], summed over tokens, nats: u = log π(chosen)/π_ref(chosen), v = log π(rejected)/π_ref(rejected), h = u - v.
"""

import math
from typing import Annotated, Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

from lightning_dpo.losses.numerics import bounded_exp, sigmoid
from lightning_dpo.losses.types import PairLogps, PairLoss, Positive, pair_loss


def exo_pair(logps: PairLogps, *, beta: Positive, label_smoothing: Annotated[float, "(0, 0.5)"]) -> PairLoss:
    r"""Efficient Exact Optimization on pairs: the reverse KL divergence to the smoothed label.

        L = q log(q/(1-ε)) + (1-q) log((1-q)/ε),    q = σ(βh)

    Args:
        beta: as in DPO.
        label_smoothing: ε; at 0 the loss would be infinite. Beyond βh = log((1-ε)/ε) the gradient pulls back. It
            vanishes where |βh| is large, so a pair with a very negative gap is not corrected.

    Returns -log 2 - log(ε(1-ε))/2 for each pair where the policy equals the reference. The margin is βh.

    References: Ji et al. 2024 (arXiv 2402.00856).
    """
    u, v = logps.log_ratios()
    h = beta * (u - v)
    log_q, log_p = logsigmoid(h), logsigmoid(-h)
    loss = log_q.exp() * (log_q - math.log1p(-label_smoothing)) + log_p.exp() * (log_p - math.log(label_smoothing))
    return pair_loss(loss, beta * u, beta * v, margin=h)


def discopop(logps: PairLogps, *, beta: Positive, tau: Positive = 0.05) -> PairLoss:
    r"""DiscoPOP: a mixture of the logistic and the exponential loss, found by search (log-ratio modulated loss).

        L = -(1-g) log σ(x) + g e^-x,    x = βh,    g = σ(x/τ)

    Args:
        beta: as in DPO.
        tau: temperature τ of the mixture. At 0.05 the slope at x = 0 is positive: from the reference the margin first
            falls to the local minimum x = -0.119, and training needs noise to leave it.

    Returns (1 + log 2)/2 for each pair where the policy equals the reference. The margin is βh.

    References: Lu et al. 2024 (arXiv 2406.08414).
    """
    u, v = logps.log_ratios()
    x = beta * (u - v)
    # g and e^-x in one exponential: separately they are 0 and inf where x is very negative
    loss = -sigmoid(-x / tau) * logsigmoid(x) + bounded_exp(logsigmoid(x / tau) - x)
    return pair_loss(loss, beta * u, beta * v, margin=x)


def gpo_exponential(logps: PairLogps, *, beta: Positive) -> PairLoss:
    r"""Generalized Preference Optimization with the exponential loss.

        L = e^(-βh)

    Args:
        beta: as in DPO. Before e^(-βh) overflows (at -βh = 80.7 in float32), its tangent continues it.

    Returns 1 for each pair where the policy equals the reference. The margin is βh.

    References: Tang et al. 2024 (arXiv 2402.05749), table 1.
    """
    u, v = logps.log_ratios()
    h = beta * (u - v)
    return pair_loss(bounded_exp(-h), beta * u, beta * v, margin=h)


def fdpo(
    logps: PairLogps,
    *,
    beta: Positive,
    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "reverse_kl",
    alpha: Annotated[float, "(0, 1)"] = 0.5,
) -> PairLoss:
    r"""f-DPO: DPO with another divergence than the reverse KL between policy and reference.

        L = -log σ(β f'(e^u) - β f'(e^v))

    with f'(e^x) = x (reverse_kl: this is DPO), -e^-x (forward_kl), log 2 + log σ(x) (js), (1 - e^(-αx))/α (alpha).

    Args:
        beta: strength of the pull towards the reference, in the unit of the divergence.
        divergence: which f. Before e^-x overflows, its tangent continues it.
        alpha: α of the alpha-divergence, which tends to reverse_kl at 0 and to forward_kl at 1. Later versions of TRL
            take 1 - α. The other divergences do not use it.

    Returns log 2 for each pair where the policy equals the reference. The margin is the argument of σ.

    References: Wang et al. 2023 (arXiv 2309.16240).
    """

    def slope(x: Tensor) -> Tensor:
        match divergence:
            case "reverse_kl":
                return x
            case "forward_kl":
                return -bounded_exp(-x)
            case "js":
                return math.log(2) + logsigmoid(x)
            case "alpha":
                return (1 - bounded_exp(-alpha * x)) / alpha

    u, v = logps.log_ratios()
    h = beta * (slope(u) - slope(v))
    return pair_loss(-logsigmoid(h), beta * u, beta * v, margin=h)


def chipo(logps: PairLogps, *, beta: Positive, r_max: Positive) -> PairLoss:
    r"""χPO: DPO with an additional χ² divergence, against over-optimisation.

        L = -log σ(clip(β φ(e^u) - β φ(e^v), ±2 R)),    φ(z) = z + log z

    Args:
        beta: strength of the pull towards the reference.
        r_max: R, the largest true reward; a pair whose difference is clipped gives no gradient. Before e^u overflows,
            its tangent continues it.

    Returns log 2 for each pair where the policy equals the reference. The margin is the clipped difference.

    References: Huang et al. 2024 (arXiv 2407.13399).
    """
    u, v = logps.log_ratios()
    h = _chi_gap(u, v, beta, r_max)
    return pair_loss(-logsigmoid(h), beta * u, beta * v, margin=h)


def square_chipo(logps: PairLogps, *, beta: Positive, r_max: Positive | None = None) -> PairLoss:
    r"""Square loss on the probability of the label.

        L = (σ(βh) - 1)²/2

    Args:
        beta: as in DPO. The loss saturates on both sides.
        r_max: None uses DPO's βh. A number uses χPO's clipped difference instead, as in the paper's abstract: χPO with
            the log-loss replaced.

    Returns 1/8 for each pair where the policy equals the reference. The margin is the argument of σ.

    References: Zhou et al. 2025 (SquareχPO, arXiv 2505.21395). The factor 1/2 was not confirmed from the paper.
    """
    u, v = logps.log_ratios()
    h = beta * (u - v) if r_max is None else _chi_gap(u, v, beta, r_max)
    return pair_loss(sigmoid(-h) ** 2 / 2, beta * u, beta * v, margin=h)


def _chi_gap(u: Tensor, v: Tensor, beta: float, r_max: float) -> Tensor:
    # Subtract terms of the same size first: beside e^500, a term of 500 is lost.
    gap = beta * ((bounded_exp(u) - bounded_exp(v)) + (u - v))
    return gap.clamp(-2 * r_max, 2 * r_max)
