"""Packed rows with shared prompts give the model's own values and gradients, for every family that accepts them."""

import sys

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    MistralConfig,
    MixtralConfig,
    Qwen3MoeConfig,
)

from lightning_dpo.models.layers import checkpoint_activations
from lightning_dpo.ragged import Ragged, Sharing
from lightning_dpo.scoring import Scorer, attention
from lightning_dpo.scoring.attention import NAME, Segments, plain_attention
from lightning_dpo.scoring.layout import padded_groups, shared_prefix
from tests.conftest import SIZES, gpt2, llama, qwen3
from tests.pairs import tree_pairs

SMALL = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 8}
EXPERTS = {"num_experts_per_tok": 2, "output_router_logits": True, "router_aux_loss_coef": 0.1}
CONFIGS = {
    "mistral, window 5": MistralConfig(**SMALL, sliding_window=5),
    "gemma2, window 6": Gemma2Config(
        **SMALL, sliding_window=6, attn_logit_softcapping=0.5, final_logit_softcapping=0.5
    ),
    "gemma3": Gemma3TextConfig(**SMALL, sliding_window=6),
    "gpt-oss": GptOssConfig(**SMALL, sliding_window=6, num_local_experts=4, **EXPERTS),
    "mixtral": MixtralConfig(**SMALL, num_local_experts=4, **EXPERTS),
    "qwen3-moe": Qwen3MoeConfig(**SMALL, num_experts=4, moe_intermediate_size=24, **EXPERTS),
}


def configured(name: str):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name], experts_implementation="eager").eval()


MODELS = {"llama": llama, "qwen3": qwen3, "gpt2": gpt2, **{name: lambda n=name: configured(n) for name in CONFIGS}}


@pytest.fixture(params=MODELS)
def any_model(request):
    return MODELS[request.param]()


def scored(model, scoring: str, batch, weights):
    """Summed log-probabilities, and the gradient of a random combination of them."""
    model.zero_grad()
    scores = Scorer(model, scoring).score(batch)
    sums = torch.stack([side.sum() for side in scores.logps])
    total = (sums * weights).sum() if scores.aux_loss is None else (sums * weights).sum() + scores.aux_loss
    total.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return sums.detach(), gradient, scores.aux_loss


@pytest.fixture
def float64_throughout(monkeypatch):
    """transformers computes norms, angles and softmax in float32 even for a float64 model; this makes them float64."""

    class Torch:
        float32 = torch.float64

        def __getattr__(self, name):
            return getattr(torch, name)

    for name, module in list(sys.modules.items()):
        if name.startswith("transformers.models.") and ".modeling_" in name and hasattr(module, "torch"):
            monkeypatch.setattr(module, "torch", Torch())
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.mark.parametrize("seed", range(3))
def test_packed_rows_score_like_padded_rows_in_float64(any_model, float64_throughout, seed):
    model, batch = any_model.double(), tree_pairs(seed=seed)
    weights = torch.randn(2, len(batch), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    packed, padded = (scored(model, scoring, batch, weights) for scoring in ("shared_prefix", "padded"))
    torch.testing.assert_close(packed[0], padded[0], rtol=1e-11, atol=0)
    assert (packed[1] - padded[1]).norm() <= 1e-7 * padded[1].norm()
    if packed[2] is not None:
        torch.testing.assert_close(packed[2], padded[2], rtol=1e-11, atol=0)


def test_packed_rows_score_like_padded_rows_in_float32(any_model):
    batch = tree_pairs(seed=3)
    packed, padded = (scored(any_model, scoring, batch, torch.ones(2, 8)) for scoring in ("shared_prefix", "padded"))
    torch.testing.assert_close(packed[0], padded[0], rtol=0, atol=2e-4)
    assert (packed[1] - padded[1]).norm() <= 1e-5 * padded[1].norm()


def test_the_row_holds_each_prompt_and_each_response_once():
    batch = tree_pairs()
    prompt, response = Ragged.cat([batch.prompt] * 2), Ragged.cat([batch.chosen, batch.rejected])
    layout = shared_prefix(prompt, response, batch.sharing)
    prompts = {tuple(row.tolist()) for row in prompt.rows()}
    pairs = {(tuple(p.tolist()), tuple(r.tolist())) for p, r in zip(prompt.rows(), response.rows(), strict=True)}
    tokens = sum(map(len, prompts)) + sum(len(r) for _, r in pairs)
    assert layout.inputs["input_ids"].shape == (1, tokens) and len(pairs) < 16


def test_length_groups_cost_less_than_one_padded_batch_and_score_the_same(any_model):
    lengths = [2, 3, 50, 2, 3, 2, 4, 3]
    prompt = Ragged.from_rows([list(range(1, n + 1)) for n in lengths])
    response = Ragged.from_rows([[5, 6, 7]] * 8)
    assert len(padded_groups(Ragged.from_rows([[1] * 10 * n for n in lengths]), response)) == 2
    grouped = Scorer(any_model, "padded").responses(prompt, response)
    single = [Scorer(any_model, "padded").responses(prompt.select([i]), response.select([i])) for i in range(8)]
    torch.testing.assert_close(grouped, torch.cat(single), atol=2e-4, rtol=0)


def test_one_variable_length_call_equals_one_call_per_segment(monkeypatch):
    """A slow stand-in for the GPU's kernel: queries and keys by cumulative lengths, causal from the bottom right,
    windows that include the query."""

    def slow(q, k, v, ends_q, ends_k, longest_q, longest_k, *, scale, window_size, enable_gqa=False):
        k, v = (side.repeat_interleave(q.shape[1] // side.shape[1], 1) for side in (k, v))
        rows = []
        for a, b, c, d in zip(ends_q, ends_q[1:], ends_k, ends_k[1:], strict=False):
            assert b - a <= longest_q and d - c <= longest_k
            for i in range(int(b - a)):
                last = int(d - c) - int(b - a) + i
                first = 0 if window_size[0] < 0 else max(0, last - window_size[0])
                keys, values = k[c + first : c + last + 1], v[c + first : c + last + 1]
                shares = (torch.einsum("hd,khd->hk", q[a + i], keys) * scale).softmax(-1)
                rows.append(torch.einsum("hk,khd->hd", shares, values))
        return torch.stack(rows)

    monkeypatch.setattr(attention, "varlen_attn", slow)
    segments = Segments([(3, [2, 4, 1]), (1, [5]), (2, [1, 1])])
    tokens = sum(segments.pieces)
    q, k, v = torch.randn(1, 4, tokens, 8), torch.randn(1, 2, tokens, 8), torch.randn(1, 2, tokens, 8)
    for window in (None, 3):
        one = attention._one_call(q, k, v, segments, 0.3, window)
        each, _ = attention.shared_prefix_attention(
            torch.nn.Identity(), q, k, v, None, scaling=0.3, sliding_window=window, dpo_segments=segments
        )
        torch.testing.assert_close(one, each)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_mask": torch.ones(1, 1, 6, 6)}, "does not support attention_mask"),
        ({"block_indices": torch.ones(1)}, "does not support block_indices"),
        ({"dropout": 0.1}, "does not support dropout"),
        ({"dpo_segments": Segments([(3, [4])])}, "expected one packed row of 7 tokens"),
        ({"dpo_segments": None}, "plain_attention"),
    ],
)
def test_arguments_that_would_change_the_models_attention_are_refused(changes, message):
    q = torch.randn(1, 2, 6, 4)
    arguments = {"attention_mask": None, "dpo_segments": Segments([(3, [1, 2])]), **changes}
    with pytest.raises(RuntimeError, match=message):
        attention.shared_prefix_attention(torch.nn.Identity(), q, q, q, **arguments)


def test_only_layers_that_are_recomputed_keep_packed_rows_enabled_and_the_model_still_generates():
    model, batch = llama(), tree_pairs()
    own = model.config._attn_implementation
    expected = model(torch.arange(5)[None]).logits
    Scorer(model, "shared_prefix")(batch)
    assert model.config._attn_implementation == own
    checkpoint_activations(model)
    Scorer(model, "shared_prefix")(batch)
    assert model.config._attn_implementation == NAME, "for the backward pass"
    with plain_attention(model):
        assert torch.equal(model(torch.arange(5)[None]).logits, expected)
    with pytest.raises(RuntimeError, match="plain_attention"):
        model(torch.arange(5)[None])
    attention.disable(model)
    assert model.config._attn_implementation == own


def test_checkpointed_layers_are_recomputed_with_the_same_attention():
    """Another attention in the backward pass would give wrong gradients without an error."""
    batch, weights, gradients = tree_pairs(), torch.ones(2, 8), []
    for checkpointing in (False, True):
        model = llama()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
            for layer in model.model.layers:
                layer.training = True
        gradients.append(scored(model, "shared_prefix", batch, weights)[1])
    assert torch.equal(*gradients)


def test_rows_with_the_same_tokens_are_found_and_so_are_those_of_the_first_rows():
    prompt = Ragged.from_rows([[1, 2], [3], [1, 2], [1, 2]])
    response = Ragged.from_rows([[4], [4], [5], [4]])
    found = Sharing.of(prompt, response)
    assert found == Sharing([[0, 2], [1]], [0, 1, 2, 0])
    assert found.first(2) == Sharing([[0], [1]], [0, 1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_in_half_precision_the_variable_length_call_agrees_with_padded_rows():
    model, batch = llama(hidden_size=256).cuda().bfloat16(), tree_pairs().to("cuda")
    packed, padded = (Scorer(model, scoring)(batch).chosen.sum() for scoring in ("shared_prefix", "padded"))
    torch.testing.assert_close(packed, padded, rtol=0.02, atol=0.2)
