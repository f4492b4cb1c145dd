"""Completions from a causal language model, drawn from the same distribution that scoring measures."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from itertools import groupby
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from lightning_dpo.errors import NonFiniteError
from lightning_dpo.models.loading import router_logits
from lightning_dpo.scoring.attention import plain_attention

Batches = Literal["padded", "equal", "single"]
"""Prompts that share a batch: those of similar length, padded on the left; those of equal length; none."""


class Draw(NamedTuple):
    """A completion: token ids, end token included, and the log-probability of each when it was drawn, in nats."""

    ids: list[int]
    logps: list[float]


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    seed: int,
    batch_size: int = 256,
    batches: Batches = "padded",
) -> list[Draw]:
    """One completion per prompt, at temperature 1 without filters or penalties.

    A completion depends on the model, the seed, its prompt and how many equal prompts stand before it. Up to rounding
    it does not depend on other prompts, their order or the batches. The global random generators are not used.

    Args:
        prompts: token ids, at least one token each.
        stop_ids: a completion ends with the first of these, or after `max_new_tokens`.
        batches: `padded` is fastest. Not every model ignores padding, or the other rows of its batch (agreement.py).

    Errors: NonFiniteError for a model whose probabilities are NaN.
    """
    uniform = uniforms(prompts, max_new_tokens, seed)
    completions: dict[int, Draw] = {}
    with _plain_generation(model):
        for rows in _batches([len(prompt) for prompt in prompts], batch_size, batches):
            batch = [prompts[i] for i in rows]
            completions.update(zip(rows, _generate_batch(model, batch, uniform[rows], list(stop_ids)), strict=True))
    return [completions[i] for i in range(len(prompts))]


def uniforms(prompts: Sequence[Sequence[int]], steps: int, seed: int) -> Tensor:
    """Uniform numbers in [0, 1), shape [prompt, step], float64, on the CPU.

    Each row has a generator of its own, keyed by the seed, the prompt's ids and its number among equal prompts.
    """
    rows, seen = np.empty((len(prompts), steps)), Counter()
    for row, prompt in zip(rows, map(tuple, prompts), strict=True):
        content = np.array([seed, seen[prompt], *prompt], dtype=np.int64).tobytes()
        seen[prompt] += 1
        # Not torch.Generator: its state on the CPU comes from 32 bits, so that some of many rows would be equal.
        key = int.from_bytes(sha256(content).digest()[:16], "little")
        row[:] = np.random.Generator(np.random.Philox(key=key)).random(steps)
    return torch.from_numpy(rows)


class InverseCDF(LogitsProcessor):
    """Leaves one possible token per row: the one at which the cumulative probability passes a uniform number.

    Args:
        uniform: shape [row, step], in [0, 1), float64.

    `logps` has the log-probabilities of the tokens, shape [row, 1], for each step so far.
    """

    def __init__(self, uniform: Tensor):
        self.uniform = uniform
        self.logps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        logps = scores.log_softmax(-1)
        # Integers have the same sum in any order, which floats have not on a GPU.
        cumulative = logps.exp().mul_(2.0**52).long().cumsum_(-1)
        total = cumulative[:, -1:]
        below = (self.uniform[:, len(self.logps), None] * total).long().clamp(max=total - 1)
        token = torch.searchsorted(cumulative, below, right=True)
        token = token.clamp(max=scores.shape[1] - 1)  # of a row that is NaN
        self.logps.append(logps.gather(1, token))
        return torch.full_like(scores, float("-inf")).scatter_(1, token, 0.0)


@contextmanager
def _plain_generation(model: PreTrainedModel) -> Iterator[None]:
    """No packed attention, no loss of experts, and none of the model's own settings for generation inside the block."""
    own_config = model.generation_config
    # An explicit config inherits what it does not set, such as a repetition penalty, from the model's own.
    model.generation_config = GenerationConfig()
    try:
        with plain_attention(model), router_logits(model, False):
            yield
    finally:
        model.generation_config = own_config


def _batches(lengths: list[int], size: int, batches: Batches) -> Iterator[list[int]]:
    """Numbers of the prompts of each batch, shortest first."""
    size = 1 if batches == "single" else size
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for _, group in groupby(order, key=lambda i: batches == "equal" and lengths[i]):
        rows = list(group)
        yield from (rows[start : start + size] for start in range(0, len(rows), size))


def _generate_batch(model, prompts, uniform: Tensor, stop_ids: list[int]) -> list[Draw]:
    width = max(len(p) for p in prompts)
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    config = GenerationConfig(
        do_sample=False, max_new_tokens=uniform.shape[1], eos_token_id=stop_ids, pad_token_id=stop_ids[0]
    )
    sampler = InverseCDF(uniform.to(model.device))
    output = model.generate(
        input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=LogitsProcessorList([sampler])
    )
    tokens, logps = output[:, width:].tolist(), torch.cat(sampler.logps, 1).tolist()
    draws = [_until_stop(*row, stop_ids) for row in zip(tokens, logps, strict=True)]
    if not torch.tensor([sum(draw.logps) for draw in draws]).isfinite().all():
        raise NonFiniteError(f"samples: {type(model).__name__} gives NaN for the probabilities of the next token")
    return draws


def _until_stop(ids: list[int], logps: list[float], stop_ids: list[int]) -> Draw:
    """The tokens up to the first stop token; the rest is padding, whatever its id."""
    end = next((i for i, token in enumerate(ids) if token in stop_ids), len(ids) - 1)
    return Draw(ids[: end + 1], logps[: end + 1])
