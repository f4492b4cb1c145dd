"""What a loss receives and what it returns."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Annotated

import torch
from torch import Tensor

from lightning_dpo.batch import TokenLogps

Positive = Annotated[float, "(0, inf)"]
NonNegative = Annotated[float, "[0, inf)"]
Smoothing = Annotated[float, "[0, 0.5)"]
"""The annotation of a parameter holds its range; the configuration and DPOModule enforce it."""


class ReferenceRequired(ValueError):
    """A reference-based loss was given no reference."""


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities of whole responses, log p(response | prompt), in nats.

    Summed over the response tokens, end token included, prompt excluded. Each tensor has shape [pair]. `ref_chosen` and
    `ref_rejected` are None in a run without a reference. Token counts are integers.

    The other fields are None unless the loss declares that it `needs` them, or the data have them:
        target_margin: the data's own margin of each pair.
        index: row numbers in the data set, on the CPU.
        chosen_collision, rejected_collision: sum over the response's positions of log Σ_k π(k)², k over the vocabulary.
        chosen_kl, rejected_kl: sum over the response's positions of KL(π_ref || π) over the vocabulary.
        tokens, ref_tokens: the log-probability of each response token.

    Errors: ValueError for tensors of unequal shape, and for token counts that are not integers.

    >>> PairLogps(torch.tensor([-3.0]), torch.tensor([-5.0]), chosen_tokens=torch.tensor([4])).chosen_tokens
    tensor([4])
    """

    chosen: Tensor
    rejected: Tensor
    _: KW_ONLY
    ref_chosen: Tensor | None = None
    ref_rejected: Tensor | None = None
    chosen_tokens: Tensor | None = None
    rejected_tokens: Tensor | None = None
    target_margin: Tensor | None = None
    index: Tensor | None = None
    chosen_collision: Tensor | None = None
    rejected_collision: Tensor | None = None
    chosen_kl: Tensor | None = None
    rejected_kl: Tensor | None = None
    tokens: TokenLogps | None = None
    ref_tokens: TokenLogps | None = None

    def __post_init__(self):
        found = {name: v for name, v in vars(self).items() if v is not None}
        shapes = {
            name: tuple(v.shape) if isinstance(v, Tensor) else tuple(len(side) for side in v)
            for name, v in found.items()
        }
        pairs = len(self.chosen) if self.chosen.ndim == 1 else -1
        if any(shapes[name] != ((pairs,) if isinstance(v, Tensor) else (pairs, pairs)) for name, v in found.items()):
            raise ValueError(f"every tensor of PairLogps must have the same shape [pair]; found {shapes}")
        for name in ("chosen_tokens", "rejected_tokens"):
            if name in found and (found[name].is_floating_point() or found[name].dtype == torch.bool):
                raise ValueError(f"PairLogps.{name} counts tokens, so it must hold integers; found {found[name].dtype}")

    def reference(self) -> tuple[Tensor, Tensor]:
        """log p_ref of the chosen and of the rejected responses, each [pair].

        Errors: ReferenceRequired without a reference.
        """
        if self.ref_chosen is None or self.ref_rejected is None:
            raise ReferenceRequired(
                "this loss compares the policy with a reference, and the run has none; "
                "type reference=cached or reference=copy (in Python: DPOModule(..., reference=CopyReference())), "
                "or choose a reference-free loss such as loss=simpo"
            )
        return self.ref_chosen, self.ref_rejected

    def log_ratios(self) -> tuple[Tensor, Tensor]:
        """log p/p_ref of the chosen and of the rejected responses, each [pair]."""
        ref_chosen, ref_rejected = self.reference()
        return self.chosen - ref_chosen, self.rejected - ref_rejected

    def lengths(self) -> tuple[Tensor, Tensor]:
        """Tokens of the chosen and of the rejected responses, each [pair].

        Errors: ValueError without token counts.
        """
        if self.chosen_tokens is None or self.rejected_tokens is None:
            raise ValueError("this loss uses response lengths: PairLogps(..., chosen_tokens=..., rejected_tokens=...)")
        return self.chosen_tokens, self.rejected_tokens

    def per_token(self) -> tuple[Tensor, Tensor]:
        """Mean log p of a token of the chosen and of the rejected responses, each [pair]."""
        chosen_tokens, rejected_tokens = self.lengths()
        return self.chosen / chosen_tokens, self.rejected / rejected_tokens


@dataclass(frozen=True)
class PairLoss:
    """The loss of each pair, not reduced, with its rewards and margin; every tensor has shape [pair].

    The rewards are beta x summed log-ratio for every reference-based loss, and the method's own otherwise. `margin` is
    the difference that the loss itself compares, chosen minus rejected. Rewards and margin are detached.
    """

    loss: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor
    margin: Tensor


def pair_loss(loss: Tensor, chosen_reward: Tensor, rejected_reward: Tensor, margin: Tensor) -> PairLoss:
    """PairLoss with the rewards and the margin detached."""
    return PairLoss(loss, chosen_reward.detach(), rejected_reward.detach(), margin.detach())


Loss = Callable[[PairLogps], PairLoss]
