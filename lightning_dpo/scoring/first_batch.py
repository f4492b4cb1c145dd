"""Before step 1, score one pair in two independent ways and stop if they disagree."""

from collections.abc import Callable, Collection, Mapping

import torch

from lightning_dpo.batch import PairBatch, TokenLogps
from lightning_dpo.scoring.scorer import Scorer, full_logits_logps

TOLERANCE_FLOAT32 = 5e-4
"""Nats, on the sum over a response's tokens."""
TOLERANCE_HALF = 0.05
"""Nats per token: bf16 keeps 8 bits of each activation, so the two paths round differently."""


@torch.no_grad()
def check_first_batch(
    scorer: Scorer,
    batch: PairBatch,
    others: Mapping[str, Callable[[PairBatch], TokenLogps]],
    needs: Collection[str] = (),
) -> None:
    """Stop the run unless its scoring is right, before the first step changes anything.

    The shortest pair of the batch is scored by the run's path, beside the longest, and by the plainest path:
    one unpadded sequence, all logits, log-softmax.

    Args:
        others: by name, what must give the pair the same log-probabilities: the reference of a policy that has not been
            trained yet. A stale or shifted cache does not.
        needs: what the loss declares; a loss of the chosen side has no other side to check.

    Errors: RuntimeError that says by how much which sum differs.
    """
    lengths = batch.prompt.lengths + batch.chosen.lengths + batch.rejected.lengths
    pair = batch.select([int(lengths.argmin()), int(lengths.argmax())])
    found = {f"the policy's {scorer.layout} path": scorer.score(pair, needs).logps}
    found |= {name: score(pair) for name, score in others.items()}
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
