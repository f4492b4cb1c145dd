"""Losses that need no reference, and do not use one if there is one.

Shape [pair]: S = log π(response) in nats, n its number of tokens, a = S/n.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lightning_dpo.losses.needs import needs
from lightning_dpo.losses.numerics import bounded_exp, log1mexp
from lightning_dpo.losses.types import NonNegative, PairLogps, PairLoss, Positive, pair_loss


def simpo(logps: PairLogps, *, beta: Positive, gamma: NonNegative) -> PairLoss:
    r"""Simple Preference Optimization.

        L = -log σ(β a_chosen - β a_rejected - γ)

    Args:
        beta: scale of the per-token log-probabilities (the paper uses 2 to 10).
        gamma: target margin γ, not the ratio γ/β as in the authors' code.

    The value where a policy equals its reference depends on the policy. The rewards are β a and the margin is
    β a_chosen - β a_rejected, without γ.

    References: Meng, Xia and Chen 2024 (arXiv 2405.14734), eq. 6.

    >>> chosen, rejected = torch.tensor([[-6.0], [-10.0]])  # -2 nats per token on both sides
    >>> chosen_tokens, rejected_tokens = torch.tensor([[3], [5]])
    >>> even = PairLogps(chosen, rejected, chosen_tokens=chosen_tokens, rejected_tokens=rejected_tokens)
    >>> round(simpo(even, beta=2.0, gamma=0.0).loss.item(), 4)
    0.6931
    """
    chosen, rejected = logps.per_token()
    margin = beta * chosen - beta * rejected
    return pair_loss(-logsigmoid(margin - gamma), beta * chosen, beta * rejected, margin)


def alphapo(logps: PairLogps, *, beta: Positive, gamma: NonNegative, alpha: float) -> PairLoss:
    r"""AlphaPO: SimPO with another shape of reward.

        L = -log σ(β r_chosen - β r_rejected - γ),    r = (1 - e^(-α a))/α

    Args:
        beta: scale of the rewards.
        gamma: target margin γ, as in simpo.
        alpha: shape α of the reward, of any sign; 0 is the limit r = a, which is SimPO. Before e^(-αa) overflows, its
            tangent continues it.

    The value where a policy equals its reference depends on the policy. The rewards are β r and the margin is
    β r_chosen - β r_rejected, without γ.

    References: Gupta et al. 2025 (arXiv 2501.03884).
    """

    def reward(a: Tensor) -> Tensor:
        return beta * (a if alpha == 0 else (1 - bounded_exp(-alpha * a)) / alpha)

    chosen, rejected = map(reward, logps.per_token())
    return pair_loss(-logsigmoid(chosen - rejected - gamma), chosen, rejected, margin=chosen - rejected)


def cpo(logps: PairLogps, *, beta: Positive, nll_weight: NonNegative = 1.0) -> PairLoss:
    r"""Contrastive Preference Optimization: DPO with a uniform reference, and a likelihood term on the chosen side.

        L = -log σ(β(S_chosen - S_rejected)) - λ S_chosen/n_chosen

    Args:
        beta: scale of the summed log-probabilities.
        nll_weight: λ. The likelihood is a mean over each response's tokens; TRL's, over a batch's chosen tokens.

    The value where a policy equals its reference depends on the policy. The rewards are β S, the margin is their
    difference.

    References: Xu et al. 2024 (arXiv 2401.08417).
    """
    margin = beta * (logps.chosen - logps.rejected)
    loss = -logsigmoid(margin) - nll_weight * logps.chosen / logps.lengths()[0]
    return pair_loss(loss, beta * logps.chosen, beta * logps.rejected, margin)


def orpo(logps: PairLogps, *, lam: NonNegative = 0.1) -> PairLoss:
    r"""Odds Ratio Preference Optimization.

        L = -a_chosen - λ log σ(o_chosen - o_rejected),    o = a - log(1 - e^a)

    Args:
        lam: weight λ of the odds ratio; other code calls it beta. The likelihood term covers the response only; in the
            authors' code it covers the prompt as well by default.

    The value where a policy equals its reference depends on the policy. The rewards are λ a, the margin is the log odds
    ratio. log(1 - e^a) is constant above a = -1e-6, so that the odds of a certain response are finite.

    References: Hong, Lee and Thorne 2024 (arXiv 2403.07691).
    """
    chosen, rejected = logps.per_token()
    margin = chosen - log1mexp(chosen) - (rejected - log1mexp(rejected))
    return pair_loss(-chosen - lam * logsigmoid(margin), lam * chosen, lam * rejected, margin)


def slic(logps: PairLogps, *, delta: Positive = 1.0, lam: NonNegative = 0.1) -> PairLoss:
    r"""Sequence Likelihood Calibration (SLiC-HF), regularised towards the chosen response.

        L = max(0, δ - S_chosen + S_rejected) - λ S_chosen

    Args:
        delta: gap δ, in nats, beyond which the first term gives no gradient.
        lam: weight λ of the likelihood, summed over tokens.

    The value where a policy equals its reference depends on the policy. The rewards are S, the margin is their
    difference. There is no beta.

    References: Zhao et al. 2023 (arXiv 2305.10425). Form and defaults from other code, not confirmed from the paper.
    """
    margin = logps.chosen - logps.rejected
    return pair_loss(torch.relu(delta - margin) - lam * logps.chosen, logps.chosen, logps.rejected, margin)


def simper(logps: PairLogps) -> PairLoss:
    r"""SimPER: inverse perplexities, without parameters.

        L = -e^(a_chosen) + e^(a_rejected)

    Args:
        logps: shape [pair].

    The value where a policy equals its reference depends on the policy; it lies between -1 and 1. The rewards are e^a,
    the inverse perplexities, and the margin is their difference.

    References: Xiao et al. 2025 (arXiv 2502.00883). Form from memory, not confirmed from the paper.
    """
    chosen, rejected = (a.exp() for a in logps.per_token())
    return pair_loss(rejected - chosen, chosen, rejected, margin=chosen - rejected)


@needs("chosen_only")
def sft(logps: PairLogps) -> PairLoss:
    r"""Supervised fine-tuning on the chosen responses.

        L = -S_chosen/n_chosen

    Args:
        logps: shape [pair]; the rejected side is not used, and a run does not score it.

    The value where a policy equals its reference depends on the policy. The rewards are a, the log-probabilities per
    token, and the margin is their difference; the loss uses neither.

    References: none. Each response counts alike, whatever its length; TRL averages over all chosen tokens of a batch.
    """
    chosen, rejected = logps.per_token()
    return pair_loss(-chosen, chosen, rejected, margin=chosen - rejected)
