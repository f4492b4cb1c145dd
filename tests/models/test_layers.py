"""Checkpointed and compiled layers give the same numbers, and dropout stays off."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig

from lightning_dpo import DPOModule, losses
from lightning_dpo.errors import ConfigError
from lightning_dpo.models.layers import checkpoint_activations, compile_layers, without_dropout
from lightning_dpo.scoring import Scorer
from tests.pairs import tree_pairs

LLAMA = LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                    num_key_value_heads=1)  # fmt: skip
OPT = OPTConfig(vocab_size=50, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2, dropout=0.5,
                word_embed_proj_dim=16, max_position_embeddings=64)  # fmt: skip


def built(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()


def gradient_of(model, scoring):
    logps = Scorer(model, scoring)(tree_pairs(vocabulary=50))
    (logps.chosen.sum() - logps.rejected.sum()).square().sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def saved_bytes(model, scoring):
    total = 0

    def count(tensor):
        nonlocal total
        total += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        Scorer(model, scoring)(tree_pairs(vocabulary=50))
    return total


@pytest.mark.parametrize("scoring", ["padded", "shared_prefix"])
def test_checkpointed_layers_save_less_and_give_the_same_gradient(scoring):
    plain, checkpointed = built(LLAMA), built(LLAMA)
    checkpoint_activations(checkpointed)
    assert saved_bytes(checkpointed, scoring) < 0.6 * saved_bytes(plain, scoring)
    torch.testing.assert_close(gradient_of(checkpointed, scoring), gradient_of(plain, scoring), rtol=1e-9, atol=1e-12)


def test_checkpointed_layers_have_no_dropout():
    """OPT applies dropout in the layer itself, which is checkpointed only in training mode."""
    plain, checkpointed = built(OPT), built(OPT)
    checkpoint_activations(checkpointed)
    torch.testing.assert_close(gradient_of(checkpointed, "padded"), gradient_of(plain, "padded"), rtol=1e-9, atol=1e-12)


def test_the_module_keeps_layers_checkpointed():
    model = built(LLAMA)
    checkpoint_activations(model)
    policy = DPOModule(model, loss=losses.dpo).policy
    expected = saved_bytes(model, "padded")
    policy.eval()
    assert saved_bytes(policy, "padded") > expected
    assert saved_bytes(without_dropout(policy), "padded") == expected


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_layers_give_the_same_numbers_without_compiling_for_each_length(backend):
    plain, compiled = built(LLAMA), built(LLAMA)
    torch._dynamo.reset()
    compile_layers(compiled, backend)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    graphs = []
    for pairs in ([0, 1, 2], [3], [4, 5, 6, 7], [1, 5]):
        batch = tree_pairs(vocabulary=50).select(pairs)
        for found, expected in zip(Scorer(compiled)(batch), Scorer(plain)(batch), strict=True):
            torch.testing.assert_close(found.values, expected.values, rtol=1e-10, atol=1e-10)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    torch._dynamo.reset()
    assert graphs[0] > 0 and len(set(graphs[1:])) == 1


def test_a_model_that_supports_neither_is_refused():
    class Plain(torch.nn.Module):
        supports_gradient_checkpointing = False

    with pytest.raises(ConfigError, match="activation_checkpointing=true: the layers of Plain"):
        checkpoint_activations(Plain())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="compile=true: Plain has no layers"):
        compile_layers(Plain())  # type: ignore[arg-type]
