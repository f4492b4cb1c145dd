"""Pairwise losses that need no reference model."""

from torch.nn.functional import logsigmoid

from lightning_dpo.losses.types import NonNegative, PairLogps, PairLoss, Positive, pair_loss


def simpo(logps: PairLogps, *, beta: Positive, gamma: NonNegative) -> PairLoss:
    r"""Simple Preference Optimization.

        L = -log σ(β a_chosen - β a_rejected - γ),    a = log π(response) / number of its tokens

    Args:
        logps: shape [pair]; a reference, if there is one, is not used.
        beta: scale of the per-token log-probabilities (the paper uses 2 to 10).
        gamma: target margin γ itself, not the ratio γ/β that the authors' code takes.

    The rewards are β a and the margin is β a_chosen - β a_rejected, without γ.

    References: Meng, Xia and Chen 2024 (arXiv 2405.14734), eq. 6.

    >>> import torch
    >>> even = PairLogps(*torch.tensor([[-6.0], [-10.0]]), *torch.tensor([[3], [5]]))  # -2 nats per token on both sides
    >>> round(simpo(even, beta=2.0, gamma=0.0).loss.item(), 4)
    0.6931
    """
    chosen_reward = beta * logps.chosen / logps.chosen_tokens
    rejected_reward = beta * logps.rejected / logps.rejected_tokens
    margin = chosen_reward - rejected_reward
    return pair_loss(-logsigmoid(margin - gamma), chosen_reward, rejected_reward, margin)
