"""Completions that come from the distribution which scoring measures.

Generation and scoring can disagree: left padding runs through the state of a recurrence, a cache may be wrong for more
than one row, a choice of the top k experts or keys may depend on the batch. The first draw shows whether they do.
"""

import logging
from typing import get_args

import torch
from transformers import PreTrainedModel

from lightning_dpo.errors import ConfigError
from lightning_dpo.ragged import Ragged
from lightning_dpo.samples.generate import Batches, Draw, generate
from lightning_dpo.samples.measures import token_logps
from lightning_dpo.scoring import Scorer
from lightning_dpo.scoring.first_batch import computes_in_half

log = logging.getLogger(__name__)

TOLERANCE, HALF = 1e-5, 0.02
"""Nats per token. Measured: rounding gives 2e-12 in float32 and 4e-4 in bfloat16; a recurrence that reads padding gives
2e-4 to 2."""
WHICH = {"equal": "only prompts of equal length share a batch", "single": "each prompt is a batch of its own"}
FAILURES = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError)
"""What a model raises that cannot generate."""


def generate_as_scored(
    scorer: Scorer, prompts: list[list[int]], batches: Batches | None = None, **settings
) -> tuple[list[Draw], Ragged, Batches]:
    """Completions of the scorer's model, the scorer's log-probabilities of their tokens, and how prompts were batched.

    Args:
        batches: what an earlier call returned. None: the fastest way in which the model draws from the distribution
            that is scored; a warning says so where that is not `padded`.
        settings: of `generate`.

    Errors: ConfigError for a model that cannot generate, or that draws from another distribution however it is batched;
    in half precision the latter is a warning.
    """
    name, reasons, drawn = type(scorer.model).__name__, [], []
    for choice in get_args(Batches) if batches is None else (batches,):
        try:
            draws = generate(scorer.model, prompts, batches=choice, **settings)
        except FAILURES as error:
            if batches is not None or isinstance(error, torch.OutOfMemoryError):
                raise
            reasons.append(f"cannot generate ({(str(error) or type(error).__name__).splitlines()[0]})")
            continue
        scored = token_logps(scorer, prompts, [draw.ids for draw in draws])
        reason = None if batches is not None else _disagreement(scorer.model, draws, scored)
        if reason is None:
            if reasons:
                log.warning("completions: %s %s in padded batches; from now on %s", name, reasons[0], WHICH[choice])
            return draws, scored, choice
        reasons.append(reason)
        drawn.append((draws, scored, choice))
    if drawn and not _exact(scorer.model):
        log.warning("completions: %s %s; its own rounding can be that large in half precision", name, reasons[0])
        return drawn[0]
    raise ConfigError(
        f"samples.n={len(prompts)}: {name} {reasons[-1]}, even for one prompt at a time; its completions cannot be "
        "trusted; type samples.n=0 to train without them"
    )


def _disagreement(model: PreTrainedModel, draws: list[Draw], scored: Ragged) -> str | None:
    nats = divergence(draws, scored)
    if nats <= (TOLERANCE if _exact(model) else HALF):
        return None
    return (
        f"draws from another distribution than is scored, by {nats:.2g} nats per token (a recurrence that reads "
        "padding, a cache, or a choice of top k that depends on the batch)"
    )


def _exact(model: PreTrainedModel) -> bool:
    """Whether the model computes in float32 throughout. Otherwise its own rounding can look like a disagreement: deep
    experts in bfloat16 give up to 0.15 nats per token."""
    return not computes_in_half(model) and torch.get_float32_matmul_precision() == "highest"


def divergence(draws: list[Draw], scored: Ragged) -> float:
    """An estimate of KL(drawn || scored), in nats per token.

    The mean over tokens of exp(-d) - 1 + d, where d is the drawn minus the scored log-probability. It is unbiased, at
    least 0, and of second order in rounding (estimator k3 of http://joschu.net/blog/kl-approx.html).
    """
    drawn = torch.tensor([logp for draw in draws for logp in draw.logps], dtype=torch.float64)
    difference = drawn - scored.values.double()
    return (torch.expm1(-difference) + difference).mean().item()
