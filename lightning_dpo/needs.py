"""What a loss declares that it needs, against what a run has."""

from collections.abc import Collection

from lightning_dpo.reference import Reference


def check_reference(needs: Collection[str], reference: Reference | type[Reference] | None) -> None:
    """Errors: ValueError where the reference cannot give what the loss needs."""
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
