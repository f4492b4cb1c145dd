"""Before step 1, score one pair in two independent ways and stop if they disagree."""

from collections.abc import Callable, Collection, Mapping

import torch
from transformers import PreTrainedModel

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
    """Compare the run's scoring of the shortest pair, batched with the longest, with `full_logits_logps`.

    Args:
        others: by name, functions that must give the same log-probabilities, such as the reference of an untrained
            policy. A stale or shifted cache fails here.
        needs: what the loss declares; with "chosen_only" the rejected side is not checked.

    Errors: RuntimeError that names the function, the side, both sums and the tolerance.
    """
    lengths = batch.prompt.lengths + batch.chosen.lengths + batch.rejected.lengths
    pair = batch.select([int(lengths.argmin()), int(lengths.argmax())])
    scored = {f"the policy's {scorer.layout} path": scorer.score(pair, needs).logps}
    scored |= {name: score(pair) for name, score in others.items()}
    half = computes_in_half(scorer.model)
    for side, trained in zip(TokenLogps._fields, pair.trained or (None, None), strict=True):
        if side == "rejected" and "chosen_only" in needs:
            continue
        plain = full_logits_logps(scorer.model, pair.prompt.row(0), getattr(pair, side).row(0))
        expected = (plain if trained is None else plain[trained.row(0).bool()]).sum().item()
        for name, logps in scored.items():
            row = getattr(logps, side).row(0)
            value, tolerance = row.double().sum().item(), TOLERANCE_HALF * len(row) if half else TOLERANCE_FLOAT32
            if not abs(value - expected) <= tolerance:
                raise RuntimeError(
                    f"first-batch check: {name} gives the {side} response of the shortest pair {value:.5f} nats, "
                    f"full logits give {expected:.5f}; the allowed difference is {tolerance:g}. Either the model's "
                    "attention mask, positions or head are handled wrongly, or the cached reference values belong to "
                    "other rows. Training on these numbers would be meaningless."
                )


def computes_in_half(model: PreTrainedModel) -> bool:
    """Whether a forward pass of the model now rounds to 16 bits, by its weights or by autocast."""
    autocast = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
    return autocast or model.dtype not in (torch.float32, torch.float64)
