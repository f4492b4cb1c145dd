r"""Pairwise losses that compare the policy with a reference.

Notation: u = log π(chosen)/π_ref(chosen), v = log π(rejected)/π_ref(rejected), h = u - v, all summed over tokens, nats.
"""

from typing import Annotated

import torch
from torch.nn.functional import logsigmoid

from lightning_dpo.losses.types import PairLogps, PairLoss, Positive, pair_loss


def dpo(logps: PairLogps, *, beta: Positive, label_smoothing: Annotated[float, "[0, 0.5)"] = 0.0) -> PairLoss:
    r"""Direct Preference Optimization.

        L = -(1-ε) log σ(βh) - ε log σ(-βh)

    Args:
        logps: shape [pair].
        beta: strength of the pull towards the reference; larger stays nearer.
        label_smoothing: assumed share ε of flipped labels; above 0 this is conservative DPO.

    Returns log 2 for each pair where the policy equals the reference. The margin is βh.

    References: Rafailov et al. 2023 (arXiv 2305.18290), eq. 7; Mitchell 2023, "A note on DPO with noisy preferences".

    >>> same = PairLogps(*torch.tensor([[-4.0], [-9.0]]), *torch.tensor([[3], [5]]), *torch.tensor([[-4.0], [-9.0]]))
    >>> round(dpo(same, beta=0.1).loss.item(), 4)
    0.6931
    """
    u, v = logps.log_ratios()
    h = beta * (u - v)
    loss = -(1 - label_smoothing) * logsigmoid(h) - label_smoothing * logsigmoid(-h)
    return pair_loss(loss, beta * u, beta * v, margin=h)


def ipo(logps: PairLogps, *, beta: Positive, average_log_prob: bool = False) -> PairLoss:
    r"""Identity Preference Optimization.

        L = (h - 1/(2β))²,    h = u - v,    or u/n_chosen - v/n_rejected with `average_log_prob`

    Args:
        logps: shape [pair].
        beta: the paper's τ; the loss pulls the gap h to 1/(2β) nats and no further.
        average_log_prob: False sums over tokens, as the paper's equation does; True divides each log-ratio by its own
            length (TRL's form), where 1/(2β) is a gap per token: a different experiment at the same beta.

    Returns 1/(4β²) for each pair where the policy equals the reference. The margin is h, in nats.

    References: Azar et al. 2023 (arXiv 2310.12036), eq. 17.

    >>> same = PairLogps(*torch.tensor([[-4.0], [-9.0]]), *torch.tensor([[3], [5]]), *torch.tensor([[-4.0], [-9.0]]))
    >>> round(ipo(same, beta=0.1).loss.item(), 4)
    25.0
    """
    u, v = logps.log_ratios()
    h = u / logps.chosen_tokens - v / logps.rejected_tokens if average_log_prob else u - v
    return pair_loss((h - 1 / (2 * beta)) ** 2, beta * u, beta * v, margin=h)


def hinge(logps: PairLogps, *, beta: Positive) -> PairLoss:
    r"""Hinge loss on the log-ratio gap (RSO's hinge-norm).

        L = max(0, 1 - βh)

    Args:
        logps: shape [pair].
        beta: 1/β is the gap, in nats, beyond which a pair gives no gradient.

    Returns 1 for each pair where the policy equals the reference. The margin is βh.

    References: Liu et al. 2023 (arXiv 2309.06657), "hinge-norm".

    >>> same = PairLogps(*torch.tensor([[-4.0], [-9.0]]), *torch.tensor([[3], [5]]), *torch.tensor([[-4.0], [-9.0]]))
    >>> hinge(same, beta=0.1).loss.item()
    1.0
    """
    u, v = logps.log_ratios()
    h = beta * (u - v)
    return pair_loss(torch.relu(1 - h), beta * u, beta * v, margin=h)
