r"""Losses with a term for each of the two responses, beside their gap or instead of it.

Shape [pair], summed over tokens, nats: u = log π(chosen)/π_ref(chosen), v = log π(rejected)/π_ref(rejected), h = u - v.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lightning_dpo.losses.numerics import sigmoid
from lightning_dpo.losses.types import NonNegative, PairLogps, PairLoss, Positive, pair_loss


def nca_pair(logps: PairLogps, *, beta: Positive) -> PairLoss:
    r"""Noise Contrastive Alignment on pairs: rewards relative to the reference, not to each other.

        L = -log σ(βu) - ½ log σ(-βu) - ½ log σ(-βv)

    Args:
        beta: as in DPO. The gradient on the chosen side pulls back where σ(βu) > 2/3.

    Returns 2 log 2 for each pair where the policy equals the reference. The margin is βh.

    References: Chen et al. 2024 (arXiv 2402.05369).
    """
    u, v = logps.log_ratios()
    u, v = beta * u, beta * v
    return pair_loss(-logsigmoid(u) - 0.5 * logsigmoid(-u) - 0.5 * logsigmoid(-v), u, v, margin=u - v)


def bco_pair(logps: PairLogps, *, beta: Positive, delta: float | Tensor = 0.0) -> PairLoss:
    r"""Binary Classifier Optimization: chosen rewards above a shift, rejected ones below it.

        L = -log σ(βu - δ) - log σ(-(βv - δ))

    Args:
        beta: as in DPO.
        delta: reward shift δ. BCOPair keeps it as a running mean of the rewards; 0 is TRL's later form.

    Returns 2 log 2 for each pair where the policy equals the reference and δ is 0. The margin is βh.

    References: Jung et al. 2024 (arXiv 2404.04656).
    """
    u, v = logps.log_ratios()
    u, v = beta * u, beta * v
    return pair_loss(-logsigmoid(u - delta) - logsigmoid(delta - v), u, v, margin=u - v)


def sppo_hard(logps: PairLogps, *, beta: Positive) -> PairLoss:
    r"""Self-Play Preference Optimization with hard labels.

        L = (u - 1/(2β))² + (v + 1/(2β))²

    Args:
        beta: 1/η of the paper; each side is pulled to a log-ratio of ±1/(2β) nats, 500 at the default 0.001.

    Returns 1/(2β²) for each pair where the policy equals the reference (the authors' code: half of it, everywhere).
    The margin is h, in nats.

    References: Wu et al. 2024 (arXiv 2405.00675).
    """
    u, v = logps.log_ratios()
    return pair_loss((u - 1 / (2 * beta)) ** 2 + (v + 1 / (2 * beta)) ** 2, beta * u, beta * v, margin=u - v)


def apo_zero(logps: PairLogps, *, beta: Positive) -> PairLoss:
    r"""Anchored Preference Optimization, zero: chosen up and rejected down, each against the reference.

        L = 1 - σ(βu) + σ(βv)

    Args:
        beta: as in DPO. Both terms saturate on both sides.

    Returns 1 for each pair where the policy equals the reference. The margin is βh.

    References: D'Oosterlinck et al. 2024 (arXiv 2408.06266).
    """
    u, v = logps.log_ratios()
    u, v = beta * u, beta * v
    return pair_loss(sigmoid(-u) + sigmoid(v), u, v, margin=u - v)


def apo_down(logps: PairLogps, *, beta: Positive) -> PairLoss:
    r"""Anchored Preference Optimization, down: lowers both responses, for a policy better than its chosen data.

        L = σ(βu) + 1 - σ(βh)

    Args:
        beta: as in DPO. The slope in u is 0 at the reference, and positive (u falls) where |u| < |h|.

    Returns 1 for each pair where the policy equals the reference. The margin is βh.

    References: D'Oosterlinck et al. 2024 (arXiv 2408.06266).
    """
    u, v = logps.log_ratios()
    u, v = beta * u, beta * v
    return pair_loss(sigmoid(u) + sigmoid(v - u), u, v, margin=u - v)


def cal_dpo(logps: PairLogps, *, beta: Positive, cal_weight: NonNegative = 0.5) -> PairLoss:
    r"""Calibrated DPO: the logistic loss, with each side's log-ratio pulled to a target.

        L = -log σ(h) + c [(u - 1/(2β))² + (v + 1/(2β))²]

    Args:
        beta: each side is pulled to a log-ratio of ±1/(2β) nats; it does not scale h.
        cal_weight: c. The default is from the authors' code; the paper's was not confirmed.

    Returns log 2 + c/(2β²) for each pair where the policy equals the reference. The margin is h, in nats.

    References: Xiao et al. 2024 (arXiv 2412.14516).
    """
    u, v = logps.log_ratios()
    calibration = (u - 1 / (2 * beta)) ** 2 + (v + 1 / (2 * beta)) ** 2
    return pair_loss(-logsigmoid(u - v) + cal_weight * calibration, beta * u, beta * v, margin=u - v)


def dpop(logps: PairLogps, *, beta: Positive, lam: NonNegative = 50.0) -> PairLoss:
    r"""DPO-Positive: a penalty where the chosen response becomes less likely than under the reference.

        L = -log σ(β(h - λ max(0, -u)))

    Args:
        beta: as in DPO.
        lam: weight λ of the penalty, whose slope at the reference (u = 0) is taken as 0.

    Returns log 2 for each pair where the policy equals the reference. The margin is βh, without the penalty.

    References: Pal et al. 2024 (arXiv 2402.13228). The default λ was not confirmed from the paper.
    """
    u, v = logps.log_ratios()
    return pair_loss(-logsigmoid(beta * (u - v - lam * torch.relu(-u))), beta * u, beta * v, margin=beta * (u - v))
