r"""Losses that use the values of single tokens. Each declares what it needs, and the scorer computes only that.

Shape [pair], summed over tokens, nats: u = log π(chosen)/π_ref(chosen), v = log π(rejected)/π_ref(rejected), h = u - v.
"""

from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lightning_dpo.batch import TokenLogps
from lightning_dpo.losses.needs import needs, required
from lightning_dpo.losses.types import PairLogps, PairLoss, Positive, pair_loss
from lightning_dpo.ragged import Ragged


@needs("tokens")
def ld_dpo(
    logps: PairLogps, *, beta: Positive, alpha: Annotated[float, "[0, 1]"] = 0.5, policy_only: bool = False
) -> PairLoss:
    r"""Length-desensitised DPO: tokens beyond the shorter response's length count less.

        L = -log σ(β(ũ - ṽ)),    S̃ = S[1..p] + α S[p+1..n],    p = min(n_chosen, n_rejected)

    Args:
        logps: with `tokens` and `ref_tokens`.
        beta: as in DPO.
        alpha: weight α of the tokens beyond p; 1 is DPO. The default was not confirmed from the paper.
        policy_only: False weighs the tokens of policy and reference (TRL since 1.0); True those of the policy only
            (earlier TRL, LLaMA-Factory), so that the value at the reference is not log 2.

    Returns log 2 for each pair where the policy equals the reference, unless `policy_only`. The margin is the argument
    of σ; the rewards are of the whole responses.

    References: Liu et al. 2024 (arXiv 2409.06411).
    """
    u, v = logps.log_ratios()
    policy, reference = required(logps.tokens, "tokens"), required(logps.ref_tokens, "ref_tokens")
    shorter = torch.minimum(policy.chosen.lengths, policy.rejected.lengths)

    def desensitised(side: Ragged, ref: Ragged) -> Tensor:
        start = side.lengths.cumsum(0) - side.lengths
        beyond = torch.arange(len(side.values)) >= (start + shorter).repeat_interleave(side.lengths)
        weight = torch.where(beyond.to(side.values.device), alpha, 1.0).to(side.values)
        ref_weight = 1.0 if policy_only else weight
        return Ragged(weight * side.values - ref_weight * ref.values, side.lengths).sum()

    h = beta * (desensitised(policy.chosen, reference.chosen) - desensitised(policy.rejected, reference.rejected))
    return pair_loss(-logsigmoid(h), beta * u, beta * v, margin=h)


@needs("tokens")
def sampo(logps: PairLogps, *, beta: Positive, seed: int = 0) -> PairLoss:
    r"""SamPO: DPO on a random sample of the longer response's tokens, as many as the shorter response has.

        L = -log σ(β(û - v̂)),    sums over min(n_chosen, n_rejected) tokens of each side

    Args:
        logps: with `tokens`, `ref_tokens` and `index`.
        beta: as in DPO.
        seed: of the sample, which is a function of seed and row: a pair keeps its tokens in every epoch and after a
            resume. Policy and reference share them; the authors' code draws for each, so equal models have a gap.

    Returns log 2 for each pair where the policy equals the reference. The margin is the argument of σ; the rewards are
    of the whole responses.

    References: Lu et al. 2024 (arXiv 2406.10957).
    """
    u, v = logps.log_ratios()
    policy, reference = required(logps.tokens, "tokens"), required(logps.ref_tokens, "ref_tokens")
    drawn = drawn_tokens(policy, required(logps.index, "index"), seed)
    sampled = [
        Ragged((side.values - ref.values) * kept.to(side.values), side.lengths).sum()
        for side, ref, kept in zip(policy, reference, drawn, strict=True)
    ]
    h = beta * (sampled[0] - sampled[1])
    return pair_loss(-logsigmoid(h), beta * u, beta * v, margin=h)


def drawn_tokens(tokens: TokenLogps, index: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Which tokens of each side SamPO keeps, 1.0 or 0.0 for each, end to end."""
    masks: tuple[list[Tensor], list[Tensor]] = ([], [])
    rows = zip(tokens.chosen.lengths.tolist(), tokens.rejected.lengths.tolist(), index.tolist(), strict=True)
    for chosen, rejected, row in rows:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + row)
        order = torch.randperm(max(chosen, rejected), generator=generator)
        for n, side in zip((chosen, rejected), masks, strict=True):
            rank = order if n > min(chosen, rejected) else torch.arange(n)
            side.append((rank < min(chosen, rejected)).double())
    return torch.cat(masks[0]), torch.cat(masks[1])


@needs("collision")
def wpo(logps: PairLogps, *, beta: Positive, clamp: bool = True) -> PairLoss:
    r"""Weighted Preference Optimization: pairs that the policy is likely to produce count more.

        L = -w log σ(βh),    w = Π exp(mean_t [log π(y_t) - log Σ_k π(k)²]) over the two responses, no gradient

    Args:
        logps: with the policy's collision terms, log Σ_k π(k)² summed over the response.
        beta: as in DPO.
        clamp: True bounds w by 1, as the authors' code does; False does not (TRL since 1.0).

    Returns w log 2 for each pair where the policy equals the reference. The margin is βh.

    References: Zhou et al. 2024 (arXiv 2406.11827).
    """
    u, v = logps.log_ratios()
    h = beta * (u - v)
    chosen_tokens, rejected_tokens = logps.lengths()
    chosen = (logps.chosen - required(logps.chosen_collision, "chosen_collision")) / chosen_tokens
    rejected = (logps.rejected - required(logps.rejected_collision, "rejected_collision")) / rejected_tokens
    log_weight = (chosen + rejected).detach()
    weight = log_weight.clamp(max=0.0).exp() if clamp else log_weight.exp()
    return pair_loss(-weight * logsigmoid(h), beta * u, beta * v, margin=h)


@needs("reference_kl")
def tdpo1(logps: PairLogps, *, beta: Positive) -> PairLoss:
    r"""Token-level DPO, first form: the gap minus the difference of the two sequential KL divergences.

        L = -log σ(β(h - (K_rejected - K_chosen))),    K = Σ_t KL(π_ref || π) over the response's positions

    Args:
        logps: with `chosen_kl` and `rejected_kl`; the gradient flows through both.
        beta: as in DPO.

    Returns log 2 for each pair where the policy equals the reference. The margin is the argument of σ; the rewards are
    β times the log-ratios, without K.

    References: Zeng et al. 2024 (arXiv 2404.11999).
    """
    u, v = logps.log_ratios()
    chosen_kl, rejected_kl = required(logps.chosen_kl, "chosen_kl"), required(logps.rejected_kl, "rejected_kl")
    h = beta * (u - v - (rejected_kl - chosen_kl))
    return pair_loss(-logsigmoid(h), beta * u, beta * v, margin=h)


@needs("reference_kl")
def tdpo2(logps: PairLogps, *, beta: Positive, alpha: Annotated[float, "[0, inf)"] = 0.5) -> PairLoss:
    r"""Token-level DPO, second form: the KL difference has a weight, and the chosen side's KL no gradient.

        L = -log σ(β(h - α(K_rejected - sg K_chosen))),    K = Σ_t KL(π_ref || π),    sg: no gradient

    Args:
        logps: with `chosen_kl` and `rejected_kl`.
        beta: as in DPO.
        alpha: weight α of the KL difference.

    Returns log 2 for each pair where the policy equals the reference. The margin is the argument of σ; the rewards are
    β times the log-ratios, without K.

    References: Zeng et al. 2024 (arXiv 2404.11999).
    """
    u, v = logps.log_ratios()
    chosen_kl, rejected_kl = required(logps.chosen_kl, "chosen_kl"), required(logps.rejected_kl, "rejected_kl")
    h = beta * (u - v - alpha * (rejected_kl - chosen_kl.detach()))
    return pair_loss(-logsigmoid(h), beta * u, beta * v, margin=h)
