"""What a loss receives, what it returns, and what it may declare that it needs."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Annotated, Any, TypeVar

from torch import Tensor

from lightning_dpo.batch import TokenLogps

Positive = Annotated[float, "(0, inf)"]
NonNegative = Annotated[float, "[0, inf)"]
Smoothing = Annotated[float, "[0, 0.5)"]
"""A parameter's range stands in its annotation; the configuration and DPOModule enforce it."""

T = TypeVar("T")


class ReferenceRequired(ValueError):
    """A reference-based loss was given no reference."""


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities of whole responses, log p(response | prompt), in nats.

    Summed over the response tokens, end token included, prompt excluded. Each tensor has shape [pair]; token counts
    are integers. `ref_chosen` and `ref_rejected` are None in a run without a reference.

    The fields below them are None unless the loss declares that it `needs` them, or the data have them:
        target_margin: the data's own margin of each pair.
        index: row numbers in the data set, on the CPU.
        chosen_collision, rejected_collision: sum over the response's positions of log Σ_k π(k)², k over the vocabulary.
        chosen_kl, rejected_kl: sum over the response's positions of KL(π_ref || π) over the vocabulary.
        tokens, ref_tokens: the log-probability of each response token.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    ref_chosen: Tensor | None = None
    ref_rejected: Tensor | None = None
    target_margin: Tensor | None = None
    index: Tensor | None = None
    chosen_collision: Tensor | None = None
    rejected_collision: Tensor | None = None
    chosen_kl: Tensor | None = None
    rejected_kl: Tensor | None = None
    tokens: TokenLogps | None = None
    ref_tokens: TokenLogps | None = None

    def __post_init__(self):
        found = {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}
        shapes = {
            name: tuple(v.shape) if isinstance(v, Tensor) else tuple(len(side) for side in v)
            for name, v in found.items()
        }
        pairs = len(self.chosen) if self.chosen.ndim == 1 else -1
        if any(shapes[name] != ((pairs,) if isinstance(v, Tensor) else (pairs, pairs)) for name, v in found.items()):
            raise ValueError(f"every tensor of PairLogps has the same shape [pair]; found {shapes}")

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

    def per_token(self) -> tuple[Tensor, Tensor]:
        """Mean log p of a token of the chosen and of the rejected responses, each [pair]."""
        return self.chosen / self.chosen_tokens, self.rejected / self.rejected_tokens


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


Loss = Callable[[PairLogps], PairLoss]


def needs(*what: str) -> Callable[[T], T]:
    """Declare what a loss needs beyond sums over responses.

    "tokens", "collision", "reference_kl", "target_margin": fields of PairLogps. "whole_batch": its statistics range
    over the pairs that it is called with, so a step must be one micro-batch on one rank. "equal_weights": its values
    belong to the batch and not to a pair, so pairs cannot be weighted. "chosen_only": the rejected side is not scored.
    """

    def declare(loss: T) -> T:
        vars(loss).update(needs=frozenset(what))
        return loss

    return declare


def needs_of(loss: Any) -> frozenset[str]:
    """What a loss declares, seen through functools.partial."""
    while isinstance(loss, partial):
        loss = loss.func
    return getattr(loss, "needs", frozenset())


def given(value: T | None, name: str) -> T:
    """A field that the loss needs; ValueError where it is None."""
    if value is None:
        raise ValueError(f"this loss needs PairLogps.{name}, which is None; does it declare @needs(...)?")
    return value
