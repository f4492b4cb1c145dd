"""What a loss declares that it needs beyond sums over responses, and whether a run has it."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


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


def required(value: T | None, name: str) -> T:
    """A field that the loss needs; ValueError where it is None."""
    if value is None:
        raise ValueError(f"this loss needs PairLogps.{name}, which is None; does it declare @needs(...)?")
    return value


def check_reference(needs: Collection[str], reference: Any) -> None:
    """Errors: ValueError where the reference, or its class, cannot give what the loss needs (`has_distribution`)."""
    if reference is not None and "reference_kl" in needs and not reference.has_distribution:
        raise ValueError(
            "this loss compares the whole distributions of policy and reference at every token, and a cached reference "
            "keeps one number per token; type reference=copy (in Python: DPOModule(..., reference=CopyReference()))"
        )


def check_batches(needs: Collection[str], accumulate: int, ranks: int) -> None:
    """Errors: ValueError where a step is more than one micro-batch, and the loss's statistics range over it."""
    if "whole_batch" in needs and (accumulate > 1 or ranks > 1):
        raise ValueError(
            "the statistics of this loss range over one micro-batch, so several of them in a step, or several ranks, "
            "would be another loss; type trainer.accumulate_grad_batches=1 and a larger data.batch_size"
        )
