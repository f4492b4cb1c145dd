r"""The basic losses: each is a function of one number per pair, the log-ratio gap h.

Shape [pair], summed over tokens, nats: u = log π(chosen)/π_ref(chosen), v = log π(rejected)/π_ref(rejected), h = u - v.
"""

import torch
from torch.nn.functional import logsigmoid

from lightning_dpo.losses.types import PairLogps, PairLoss, Positive, Smoothing, pair_loss


def dpo(logps: PairLogps, *, beta: Positive, label_smoothing: Smoothing = 0.0) -> PairLoss:
    r"""Direct Preference Optimization.

        L = -(1-ε) log σ(βh) - ε log σ(-βh)

    Args:
        beta: strength of the pull towards the reference; a larger value keeps the policy nearer to it.
        label_smoothing: assumed share ε of flipped labels; above 0 this is conservative DPO.

    Returns log 2 for each pair where the policy equals the reference. The margin is βh.

    References: Rafailov et al. 2023 (arXiv 2305.18290), eq. 7; Mitchell 2023, "A note on DPO with noisy preferences".

    >>> chosen, rejected = torch.tensor([[-4.0], [-9.0]])
    >>> same = PairLogps(chosen, rejected, ref_chosen=chosen, ref_rejected=rejected)
    >>> round(dpo(same, beta=0.1).loss.item(), 4)
    0.6931
    """
    u, v = logps.log_ratios()
    h = beta * (u - v)
    loss = -(1 - label_smoothing) * logsigmoid(h) - label_smoothing * logsigmoid(-h)
    return pair_loss(loss, beta * u, beta * v, margin=h)


def cdpo(logps: PairLogps, *, beta: Positive, label_smoothing: Smoothing) -> PairLoss:
    r"""Conservative DPO, for data with some flipped labels.

        L = -(1-ε) log σ(βh) - ε log σ(-βh)

    Args:
        beta: as in DPO.
        label_smoothing: assumed share ε of flipped labels. The minimum is at βh = log((1-ε)/ε).

    Returns log 2 for each pair where the policy equals the reference. The margin is βh.

    References: Mitchell 2023, "A note on DPO with noisy preferences".
    """
    return dpo(logps, beta=beta, label_smoothing=label_smoothing)


def robust(logps: PairLogps, *, beta: Positive, label_smoothing: Smoothing) -> PairLoss:
    r"""Provably robust DPO: unbiased when labels are flipped at a known rate.

        L = [-(1-ε) log σ(βh) + ε log σ(-βh)] / (1-2ε)

    Args:
        beta: as in DPO.
        label_smoothing: share ε of flipped labels. The loss has no lower bound: its slope in h tends to -βε/(1-2ε),
            so watch the margin, not the loss.

    Returns log 2 for each pair where the policy equals the reference. The margin is βh.

    References: Chowdhury, Kini and Natarajan 2024 (arXiv 2403.00409).
    """
    u, v = logps.log_ratios()
    h = beta * (u - v)
    loss = (-(1 - label_smoothing) * logsigmoid(h) + label_smoothing * logsigmoid(-h)) / (1 - 2 * label_smoothing)
    return pair_loss(loss, beta * u, beta * v, margin=h)


def ipo(logps: PairLogps, *, beta: Positive, average_log_prob: bool = False) -> PairLoss:
    r"""Identity Preference Optimization.

        L = (h - 1/(2β))²,    h = u - v,    or u/n_chosen - v/n_rejected with `average_log_prob`

    Args:
        beta: the paper's τ; the loss pulls the gap h to 1/(2β) nats and no further.
        average_log_prob: False sums over tokens, as in the paper. True divides each log-ratio by its length (TRL's
            form), so that 1/(2β) is a gap per token: the same beta asks for a much larger gap.

    Returns 1/(4β²) for each pair where the policy equals the reference. The margin is h, in nats.

    References: Azar et al. 2023 (arXiv 2310.12036), eq. 17.

    >>> chosen, rejected = torch.tensor([[-4.0], [-9.0]])
    >>> same = PairLogps(chosen, rejected, ref_chosen=chosen, ref_rejected=rejected)
    >>> round(ipo(same, beta=0.1).loss.item(), 4)
    25.0
    """
    u, v = logps.log_ratios()
    if average_log_prob:
        chosen_tokens, rejected_tokens = logps.lengths()
        u, v = u / chosen_tokens, v / rejected_tokens
    h = u - v
    return pair_loss((h - 1 / (2 * beta)) ** 2, beta * u, beta * v, margin=h)


def sigmoid_norm(logps: PairLogps, *, beta: Positive) -> PairLoss:
    r"""Length-normalised DPO.

        L = -log σ(β(u/n_chosen - v/n_rejected))

    Args:
        beta: scale of log-ratios per token, some ten times DPO's.

    Returns log 2 for each pair where the policy equals the reference. The margin is the argument of σ; the rewards are
    β times summed log-ratios, so the margin is not their difference.

    References: Lambert et al. 2024 (Tulu 3, arXiv 2411.15124).
    """
    u, v = logps.log_ratios()
    chosen_tokens, rejected_tokens = logps.lengths()
    h = beta * (u / chosen_tokens - v / rejected_tokens)
    return pair_loss(-logsigmoid(h), beta * u, beta * v, margin=h)


def hinge(logps: PairLogps, *, beta: Positive) -> PairLoss:
    r"""Hinge loss on the log-ratio gap (RSO's hinge-norm).

        L = max(0, 1 - βh)

    Args:
        beta: 1/β is the gap, in nats, beyond which a pair gives no gradient.

    Returns 1 for each pair where the policy equals the reference. The margin is βh.

    References: Liu et al. 2023 (arXiv 2309.06657), "hinge-norm".

    >>> chosen, rejected = torch.tensor([[-4.0], [-9.0]])
    >>> same = PairLogps(chosen, rejected, ref_chosen=chosen, ref_rejected=rejected)
    >>> hinge(same, beta=0.1).loss.item()
    1.0
    """
    u, v = logps.log_ratios()
    h = beta * (u - v)
    return pair_loss(torch.relu(1 - h), beta * u, beta * v, margin=h)
