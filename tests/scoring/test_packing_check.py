"""The rule or the probe finds models for which packed rows would be silently wrong, and `auto` pads for them."""

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Lfm2Config,
    Llama4TextConfig,
    Mamba2Config,
    MistralConfig,
    MixtralConfig,
    NemotronConfig,
    PhimoeConfig,
    Qwen3NextConfig,
    RobertaConfig,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lightning_dpo.errors import ConfigError
from lightning_dpo.scoring import Scorer, attention, full_logits_logps
from lightning_dpo.scoring.packing_check import probe_packing, why_not_packed
from tests.conftest import SIZES, llama
from tests.pairs import tree_pairs

LLAMA = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}
UNSOUND = {
    "alibi": (BloomConfig(vocab_size=61, hidden_size=32, n_layer=2, n_head=4), "registry"),
    "its own attention": (FalconConfig(**SIZES), "registry"),
    "a convolution": (Lfm2Config(**LLAMA, layer_types=["conv", "full_attention"]), "layers of type conv"),
    "chunks": (Llama4TextConfig(**LLAMA, head_dim=8, intermediate_size_mlp=48, num_local_experts=2), "needs a mask"),
    "a recurrence": (
        Mamba2Config(**{**SIZES, "num_heads": 8}, head_dim=8, state_size=8, n_groups=1, chunk_size=8), "registry",
    ),
    "linear attention": (
        Qwen3NextConfig(
            **LLAMA, head_dim=8, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=24,
            shared_expert_intermediate_size=24,
            linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8,
        ),
        "registry",
    ),
    "a dropped argument": (NemotronConfig(**LLAMA), "got no dpo_segments"),
    "a window in the mask": (PhimoeConfig(**LLAMA, num_local_experts=2, sliding_window=4), "differ by"),
}  # fmt: skip
PAD_FIRST = RobertaConfig(**SIZES, intermediate_size=48, max_position_embeddings=64, is_decoder=True)


def built(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("name", UNSOUND)
def test_auto_pads_and_scores_correctly_where_packed_rows_are_unsound(name):
    config, reason = UNSOUND[name]
    model, batch = built(config), tree_pairs(3)
    scorer = Scorer(model)
    with torch.no_grad():
        scored = scorer(batch)
        plain = full_logits_logps(model, batch.prompt.row(0), batch.chosen.row(0))
    assert scorer.layout == "padded" and reason in scorer.why_not_packed
    torch.testing.assert_close(scored.chosen.row(0), plain.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", UNSOUND)
def test_shared_prefix_is_an_error_where_packed_rows_are_unsound(name):
    config, reason = UNSOUND[name]
    with pytest.raises(ConfigError, match=f"scoring=shared_prefix is unsound: .*{reason}.*type scoring=auto"):
        Scorer(built(config), "shared_prefix")(tree_pairs(3))


def test_positions_that_do_not_start_at_zero_are_found():
    assert why_not_packed(built(PAD_FIRST)) is None and "differ by" in str(probe_packing(built(PAD_FIRST)))


def test_a_window_longer_than_the_probe_must_reach_the_attention_function():
    """The probe's few tokens cannot show a window of 4096, which a layer that does not pass it would ignore."""
    model = built(MistralConfig(**LLAMA, sliding_window=4096))
    assert probe_packing(model) is None
    right = attention.shared_prefix_attention

    def without_window(*arguments, sliding_window=None, **others):
        return right(*arguments, **others)

    attention.AttentionInterface.register(attention.NAME, without_window)
    try:
        assert "does not pass it" in str(probe_packing(model))
    finally:
        attention.AttentionInterface.register(attention.NAME, right)


def test_a_layer_without_the_attention_function_is_found():
    model = llama()
    layer = model.model.layers[1].self_attn
    layer.forward = lambda hidden_states, **_: (layer.o_proj(hidden_states), None)
    assert probe_packing(model) == "1 of 2 layers use the attention function"


def test_prompt_learning_is_not_packed():
    tuned = get_peft_model(llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert "prompt learning" in str(why_not_packed(tuned))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_probe_accepts_a_sound_model_in_every_dtype_and_leaves_no_trace(dtype):
    model = llama().to(dtype)
    own = model.config._attn_implementation
    assert probe_packing(model) is None
    attention.disable(model)
    assert model.config._attn_implementation == own


def test_an_error_without_a_message_is_named_by_its_type(monkeypatch):
    def fail(*_, **__):
        raise AssertionError

    model = llama()
    monkeypatch.setattr(model, "forward", fail)
    assert probe_packing(model) == "AssertionError"


def test_running_out_of_memory_is_raised_and_not_blamed_on_the_model(monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError

    model = llama()
    monkeypatch.setattr(model, "forward", fail)
    with pytest.raises(torch.OutOfMemoryError):
        probe_packing(model)


def deep_experts():
    """24 layers of 8 experts in bfloat16. Tokens change experts by rounding, and their logits change with them."""
    torch.manual_seed(30)
    config = MixtralConfig(**{**LLAMA, "num_hidden_layers": 24}, num_local_experts=8, initializer_range=0.15)
    return AutoModelForCausalLM.from_config(config).eval().bfloat16()


def test_rounding_of_deep_experts_in_half_precision_is_no_fault():
    assert probe_packing(deep_experts()) is None


@pytest.mark.parametrize(
    ("noise", "padded_too", "accepted"),
    [(0.045, True, True), (0.045, False, False), (0.09, True, False), (0.02, False, True)],
)
def test_packed_rows_may_differ_as_padded_rows_do_but_never_as_by_a_leak(noise, padded_too, accepted):
    """Noise of known size, relative to the logits, stands in for rounding, in packed rows or in padded ones too."""
    model = llama().bfloat16()
    own = model.forward

    def noisy(attention_mask=None, dpo_segments=None, **inputs):
        given = {"attention_mask": attention_mask, "dpo_segments": dpo_segments}
        outputs = own(**inputs, **{name: value for name, value in given.items() if value is not None})
        if dpo_segments is not None or (padded_too and attention_mask is not None):
            logits = outputs.logits.float()
            outputs.logits = logits + noise * logits.square().mean().sqrt() * torch.randn_like(logits)
        return outputs

    model.forward = noisy
    assert (probe_packing(model) is None) == accepted


@pytest.mark.parametrize(
    "build", [llama, lambda: llama().bfloat16(), deep_experts], ids=["float32", "bfloat16", "deep experts"]
)
def test_a_leak_between_responses_is_found_in_half_precision_too(monkeypatch, build):
    """Causal attention over the whole row, which ignores the segments."""

    def leaking(module, query, key, value, mask, dpo_segments, **kwargs):
        dpo_segments.calls += 1
        kwargs.pop("sliding_window", None)
        return sdpa_attention_forward(module, query, key, value, None, is_causal=True, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, attention.NAME, leaking)
    assert "differ by" in str(probe_packing(build()))
