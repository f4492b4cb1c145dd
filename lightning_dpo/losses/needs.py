"""What a loss needs beyond sums over responses, and whether a run provides it."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


def needs(*what: str) -> Callable[[T], T]:
    """Declare what a loss needs beyond sums over responses.

    "tokens", "collision", "reference_kl", "target_margin": fields of PairLogps. "whole_batch": its statistics are over
    the pairs that it is called with, so a step must be one micro-batch on one rank. "equal_weights": its values belong
    to the batch and not to a pair, so pairs cannot be weighted. "chosen_only": the rejected side is not scored.
    """

    def declare(loss: T) -> T:
        vars(loss).update(needs=frozenset(what))
        return loss

    return declare


def needs_of(loss: Any) -> frozenset[str]:
    """What a loss, or a partial of one, declares."""
    while isinstance(loss, partial):
        loss = loss.func
    return getattr(loss, "needs", frozenset())


def required(value: T | None, name: str) -> T:
    """A field of PairLogps that the loss needs. Errors: ValueError if it is None."""
    if value is None:
        raise ValueError(f"this loss needs PairLogps.{name}, which is None; does it declare @needs(...)?")
    return value


def check_reference(needs: Collection[str], reference: Any) -> None:
    """Errors: ValueError if the loss needs a distribution that the reference, or its class, does not have."""
    if reference is not None and "reference_kl" in needs and not reference.has_distribution:
        raise ValueError(
            "this loss compares the whole distributions of policy and reference at every token, and a cached reference "
            "has one number per token; type reference=copy (in Python: DPOModule(..., reference=CopyReference()))"
        )


def check_batches(needs: Collection[str], accumulate: int, ranks: int) -> None:
    """Errors: ValueError if the loss needs the whole step in one micro-batch, and the step has several."""
    if "whole_batch" in needs and (accumulate > 1 or ranks > 1):
        raise ValueError(
            "the statistics of this loss are over one micro-batch, so a step of several micro-batches or ranks would "
            "minimise another loss; type trainer.accumulate_grad_batches=1 and a larger data.batch_size"
        )


def check_columns(needs: Collection[str], weight: Any, margin: Any) -> None:
    """Errors: ValueError if the data have weights or margins, which may be None, that the loss cannot use."""
    if weight is not None and "equal_weights" in needs:
        raise ValueError(
            "this loss has one value for the whole batch, so pairs cannot be weighted; leave out data.weight_column"
        )
    if margin is not None and "target_margin" not in needs:
        raise ValueError("this loss does not use the data's margins; leave out data.margin_column, or type loss=odpo")
