"""Completions come from the distribution that is scored, or the run says that they do not."""

import logging
import math
from contextlib import nullcontext

import pytest
import torch

from lightning_dpo.errors import ConfigError
from lightning_dpo.ragged import Ragged
from lightning_dpo.samples.agreement import divergence, generate_as_scored
from lightning_dpo.samples.generate import Draw
from lightning_dpo.scoring import Scorer
from lightning_dpo.scoring.scorer import full_logits_logps
from tests.conftest import llama
from tests.samples.kinds import make

PROMPTS = [[5, 7], [1, 2, 3, 4, 5, 6, 7, 8, 9], [9, 8, 7], [2, 4, 6, 8, 10, 12], [5, 7]] * 3
SETTINGS = {"max_new_tokens": 8, "stop_ids": [60], "seed": 0}


def test_the_divergence_is_the_kl_divergence_of_the_drawn_from_the_scored_distribution():
    drawn, scored = [0.5, 0.25, 0.25], [0.25, 0.5, 0.25]
    tokens = [0, 0, 1, 2]  # each as often as its probability says
    draws = [Draw([token], [math.log(drawn[token])]) for token in tokens]
    values = torch.tensor([math.log(scored[token]) for token in tokens], dtype=torch.float64)
    kl = sum(q * math.log(q / p) for q, p in zip(drawn, scored, strict=True))
    assert divergence(draws, Ragged(values, torch.ones(4, dtype=torch.long))) == pytest.approx(kl)


@pytest.mark.parametrize(
    ("kind", "batches", "which"),
    [
        ("llama", "padded", None),
        ("gpt2", "padded", None),
        ("qwen3_moe", "padded", None),
        ("recurrent_gemma", "equal", "only prompts of equal length share a batch"),
        ("rwkv", "single", "each prompt is a batch of its own"),
    ],
)
def test_prompts_share_a_batch_where_the_model_then_generates_what_is_scored(kind, batches, which, caplog):
    model = make(kind)
    with caplog.at_level(logging.WARNING):
        draws, scored, chosen = generate_as_scored(Scorer(model, "padded"), PROMPTS, **SETTINGS)
    assert chosen == batches
    warnings = [r.message for r in caplog.records if r.name == "lightning_dpo.samples.agreement"]
    assert len(warnings) == (which is not None)
    assert which is None or (which in warnings[0] and type(model).__name__ in warnings[0] and "nats" in warnings[0])
    for prompt, draw, row in zip(PROMPTS, draws, scored.rows(), strict=True):
        plain = full_logits_logps(model, torch.tensor(prompt), torch.tensor(draw.ids))
        assert draw.logps == pytest.approx(plain.tolist(), abs=1e-4) and row.tolist() == pytest.approx(
            plain.tolist(), abs=1e-4
        )


def test_the_first_decision_holds_for_later_calls(caplog):
    scorer = Scorer(make("recurrent_gemma"), "padded")
    first, _, batches = generate_as_scored(scorer, PROMPTS, **SETTINGS)
    caplog.clear()
    again, _, same = generate_as_scored(scorer, PROMPTS, batches, **SETTINGS)
    assert again == first and same == batches == "equal" and not caplog.records


def test_half_precision_is_no_disagreement():
    assert generate_as_scored(Scorer(make("qwen3_moe").bfloat16()), PROMPTS, **SETTINGS)[2] == "padded"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_draws_otherwise_however_it_is_batched_is_refused_or_in_half_precision_named(dtype, caplog):
    model = llama(initializer_range=0.3).to(dtype)
    own = model.forward

    def flatter_with_a_cache(*args, use_cache=None, **kwargs):
        outputs = own(*args, use_cache=use_cache, **kwargs)
        outputs.logits = outputs.logits * (1.0 if use_cache is False else 0.5)
        return outputs

    model.forward = flatter_with_a_cache
    refused = "samples.n=15: LlamaForCausalLM draws from another distribution.*a choice of top k.*samples.n=0"
    with pytest.raises(ConfigError, match=refused) if dtype == torch.float32 else nullcontext():
        assert generate_as_scored(Scorer(model, "padded"), PROMPTS, **SETTINGS)[2] == "padded"
        assert "its own rounding can be that large in half precision" in caplog.text


def test_a_model_that_cannot_generate_is_refused_with_its_reason():
    model = llama()

    def prepare_inputs_for_generation(*args, **kwargs):
        raise NotImplementedError("no cache for this model")

    model.prepare_inputs_for_generation = prepare_inputs_for_generation
    with pytest.raises(ConfigError, match=r"LlamaForCausalLM cannot generate \(no cache for this model\).*samples.n=0"):
        generate_as_scored(Scorer(model), PROMPTS, **SETTINGS)
