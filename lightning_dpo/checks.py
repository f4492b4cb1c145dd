"""A check of the first batch with teeth: two independent paths must score the same pair alike."""

from collections.abc import Collection

import torch

from lightning_dpo.batch import PairBatch, TokenLogps
from lightning_dpo.reference import Reference
from lightning_dpo.scoring import Scorer, full_logits_logps

TOLERANCE_FLOAT32 = 5e-4
"""Nats, on the sum over a response's tokens."""
TOLERANCE_HALF = 0.05
"""Nats per token: bf16 keeps 8 bits of each activation, so the two paths round differently."""


@torch.no_grad()
def check_first_batch(
    scorer: Scorer, reference: Reference | None, batch: PairBatch, needs: Collection[str] = ()
) -> None:
    """Stop the run unless its scoring is right, before the first step changes anything.

    The shortest pair of the batch is scored by the run's path, padded beside the longest, and by the plainest path:
    one unpadded sequence, all logits, log-softmax. Where the reference is the policy's start, its values for that pair
    must agree as well, which a stale or shifted cache does not; give None for the reference of a policy trained since.
    `needs` is what the loss declares: a loss of the chosen side has no other side to check.

    Errors: RuntimeError that says by how much which sum differs.
    """
    lengths = batch.prompt.lengths + batch.chosen.lengths + batch.rejected.lengths
    pair = batch.select([int(lengths.argmin()), int(lengths.argmax())])
    found = {f"the policy's {scorer.layout} path": scorer.score(pair, needs).logps}
    if reference is not None and reference.is_start:
        found["the reference"] = reference(pair)
    prompt = pair.prompt.row(0)
    for side, trained in zip(TokenLogps._fields, pair.trained or (None, None), strict=True):
        if side == "rejected" and "chosen_only" in needs:
            continue
        plain = full_logits_logps(scorer.model, prompt, getattr(pair, side).row(0))
        plain = (plain if trained is None else plain[trained.row(0).bool()]).sum().item()
        for name, logps in found.items():
            tokens = int(getattr(logps, side).lengths[0])
            _agree(
                name,
                side,
                getattr(logps, side).row(0).double().sum().item(),
                plain,
                tokens,
                scorer.model.dtype,
            )


def _agree(name: str, side: str, value: float, plain: float, tokens: int, dtype: torch.dtype) -> None:
    exact = dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
    exact = exact and not torch.is_autocast_enabled("cuda")
    tolerance = TOLERANCE_FLOAT32 if exact else TOLERANCE_HALF * tokens
    if not abs(value - plain) <= tolerance:
        raise RuntimeError(
            f"first-batch check: {name} gives the {side} response of the shortest pair {value:.5f} nats, "
            f"full logits give {plain:.5f}; allowed difference {tolerance:g}. "
            "This model's attention mask, positions or head are not scored right, or the cached reference values are "
            "not these rows'; training on such numbers would be meaningless."
        )
