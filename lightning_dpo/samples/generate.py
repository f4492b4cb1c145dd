"""Completions from a causal language model, drawn from the same distribution that scoring measures."""

from collections.abc import Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel

from lightning_dpo.scoring.attention import plain_attention


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    seed: int,
    batch_size: int = 256,
) -> list[list[int]]:
    """Token ids of one completion per prompt, at temperature 1 without filters or penalties, end token included.

    Args:
        prompts: token ids, at least one token each.
        stop_ids: a completion ends with the first of these, or after `max_new_tokens`.
        seed: the only source of randomness; the global generators keep their state.
    """
    # Prompts of similar length share a batch; the order depends on the prompts only.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    completions: dict[int, list[int]] = {}
    devices = [model.device] if model.device.type == "cuda" else []
    own_config = model.generation_config
    # An explicit config inherits what it does not set, such as a repetition penalty, from the model's own.
    model.generation_config = GenerationConfig()
    try:
        with plain_attention(model), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                new = _generate_batch(model, [prompts[i] for i in rows], max_new_tokens, list(stop_ids))
                completions.update(zip(rows, new, strict=True))
    finally:
        model.generation_config = own_config
    return [completions[i] for i in range(len(prompts))]


def _generate_batch(model, prompts, max_new_tokens: int, stop_ids: list[int]) -> list[list[int]]:
    width = max(len(p) for p in prompts)
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=stop_ids,
        pad_token_id=stop_ids[0],
    )
    output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)  # type: ignore[operator]
    return [_until_stop(row, stop_ids) for row in output[:, width:].tolist()]


def _until_stop(ids: list[int], stop_ids: list[int]) -> list[int]:
    """The tokens up to the first stop token; the rest is padding, whatever its id."""
    end = next((i for i, token in enumerate(ids) if token in stop_ids), len(ids) - 1)
    return ids[: end + 1]
