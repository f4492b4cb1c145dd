"""A model whose tokens see those after them is refused, whatever the layout."""

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel

from lightning_dpo.errors import ConfigError
from lightning_dpo.scoring import Scorer
from lightning_dpo.scoring.causality import check_causal
from tests.conftest import llama, random_pairs
from tests.samples.kinds import make


def bert() -> BertLMHeadModel:
    """Without is_decoder, transformers loads it for causal modelling with attention in both directions."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    return BertLMHeadModel(BertConfig(**sizes, initializer_range=0.2)).eval()


def both_ways():
    """A Llama without the causal mask, in its own attention and in packed rows."""
    model = llama(initializer_range=0.2)
    for layer in model.model.layers:
        own = layer.self_attn.forward

        def forward(*args, own=own, **kwargs):
            kwargs["hidden_states"] = kwargs["hidden_states"] + kwargs["hidden_states"].mean(1, keepdim=True)
            return own(*args, **kwargs)

        layer.self_attn.forward = forward
    return model


def doge():
    """Doge's experts: the choice of the top k looks at the whole row."""
    return make("doge")


@pytest.mark.parametrize("model", [bert, both_ways, doge])
@pytest.mark.parametrize("scoring", ["auto", "padded"])
def test_a_model_that_sees_the_future_is_refused(model, scoring):
    with pytest.raises(ConfigError, match="is not causal: another last token changes the logits before it"):
        Scorer(model(), scoring)(random_pairs())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["qwen3_moe", "recurrent_gemma", "gpt2"])
def test_causal_models_pass(kind, dtype):
    """Experts too, whose sums depend on how many tokens each of them gets."""
    check_causal(make(kind).to(dtype))
