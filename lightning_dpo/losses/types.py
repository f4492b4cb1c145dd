"""What a loss receives and what it returns."""

from dataclasses import dataclass, fields
from typing import Annotated

from torch import Tensor

Positive = Annotated[float, "(0, inf)"]
NonNegative = Annotated[float, "[0, inf)"]
"""A parameter's range stands in its annotation; the configuration and DPOModule enforce it."""


class ReferenceRequired(ValueError):
    """A reference-based loss was given no reference."""


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities of whole responses, log p(response | prompt), in nats.

    Summed over the response tokens, end token included, prompt excluded. Each tensor has shape [pair]; token counts
    are integers. `ref_chosen` and `ref_rejected` are None in a run without a reference.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    ref_chosen: Tensor | None = None
    ref_rejected: Tensor | None = None

    def __post_init__(self):
        shapes = {f.name: tuple(v.shape) for f in fields(self) if (v := getattr(self, f.name)) is not None}
        if self.chosen.ndim != 1 or len(set(shapes.values())) != 1:
            raise ValueError(f"every tensor of PairLogps has the same shape [pair]; found {shapes}")

    def log_ratios(self) -> tuple[Tensor, Tensor]:
        """log p/p_ref of the chosen and of the rejected responses, each [pair].

        Errors: ReferenceRequired without a reference.
        """
        if self.ref_chosen is None or self.ref_rejected is None:
            raise ReferenceRequired(
                "this loss compares the policy with a reference, and the run has none; "
                "type reference=cached or reference=copy (in Python: DPOModule(..., reference=CopyReference())), "
                "or choose a reference-free loss such as loss=simpo"
            )
        return self.chosen - self.ref_chosen, self.rejected - self.ref_rejected


@dataclass(frozen=True)
class PairLoss:
    """A loss per pair, not reduced, and what it says about each response; every tensor has shape [pair].

    The rewards are beta x summed log-ratio for every reference-based loss, and the method's own otherwise. `margin` is
    what the loss itself compares (chosen minus rejected). Rewards and margin are detached.
    """

    loss: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor
    margin: Tensor


def pair_loss(loss: Tensor, chosen_reward: Tensor, rejected_reward: Tensor, margin: Tensor) -> PairLoss:
    """PairLoss with the rewards and the margin detached."""
    return PairLoss(loss, chosen_reward.detach(), rejected_reward.detach(), margin.detach())
