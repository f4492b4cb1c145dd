r"""DPO with a term added to its gap, or with another gap.

Shape [pair], summed over tokens, nats: u = log π(chosen)/π_ref(chosen), v = log π(rejected)/π_ref(rejected), h = u - v.
"""

from torch.nn.functional import logsigmoid

from lightning_dpo.losses.needs import needs, required
from lightning_dpo.losses.types import NonNegative, PairLogps, PairLoss, Positive, pair_loss


def rdpo(logps: PairLogps, *, beta: Positive, alpha: NonNegative = 0.01) -> PairLoss:
    r"""Length-regularised DPO: a longer chosen response needs less of a gap.

        L = -log σ(βh + α(n_chosen - n_rejected))

    Args:
        beta: as in DPO.
        alpha: weight α of a token of extra length. The default was not confirmed from the paper.

    Returns -log σ(α(n_chosen - n_rejected)) for each pair where the policy equals the reference. The margin is the
    argument of σ.

    References: Park et al. 2024 (arXiv 2403.19159).
    """
    u, v = logps.log_ratios()
    chosen_tokens, rejected_tokens = logps.lengths()
    h = beta * (u - v) + alpha * (chosen_tokens - rejected_tokens).to(u)
    return pair_loss(-logsigmoid(h), beta * u, beta * v, margin=h)


@needs("target_margin")
def odpo(logps: PairLogps, *, beta: Positive, offset: float | None = None) -> PairLoss:
    r"""DPO with an offset: the better the chosen response, the larger the gap should be.

        L = -log σ(βh - Δ)

    Args:
        logps: its `target_margin` is Δ.
        beta: as in DPO.
        offset: one Δ for all pairs, for data without margins. The paper's Δ is α log of a difference of scores; the
            data's column is used unchanged.

    Returns -log σ(-Δ) for each pair where the policy equals the reference. The margin is βh, without Δ.

    Errors: ValueError unless there is exactly one Δ, the data's or `offset`.

    References: Amini, Vieira and Cotterell 2024 (arXiv 2402.10571). Form from memory, not confirmed from the paper.
    """
    if (offset is None) == (logps.target_margin is None):
        found = "neither" if offset is None else "both"
        raise ValueError(f"odpo takes its offset from data.margin_column or from loss.offset; found {found}")
    u, v = logps.log_ratios()
    h = beta * (u - v)
    delta = required(logps.target_margin, "target_margin") if offset is None else offset
    return pair_loss(-logsigmoid(h - delta), beta * u, beta * v, margin=h)


def hdpo(logps: PairLogps, *, beta: Positive, alpha: Positive) -> PairLoss:
    r"""H-DPO: the policy's entropy has its own weight.

        L = -log σ(β[α(S_chosen - S_rejected) - (R_chosen - R_rejected)]),    S = log π, R = log π_ref

    Args:
        beta: as in DPO.
        alpha: weight α of the entropy: below 1 sharpens the policy, 1 is DPO, above 1 spreads it.

    Returns -log σ(β(α-1)(R_chosen - R_rejected)) for each pair where the policy equals the reference: log 2 at α = 1
    only. The margin is the argument of σ.

    References: Omura et al. 2024 (arXiv 2411.07595). Form from memory, not confirmed from the paper.
    """
    u, v = logps.log_ratios()
    ref_chosen, ref_rejected = logps.reference()
    h = beta * (alpha * (logps.chosen - logps.rejected) - (ref_chosen - ref_rejected))
    return pair_loss(-logsigmoid(h), beta * u, beta * v, margin=h)
