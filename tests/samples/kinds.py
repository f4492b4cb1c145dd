"""Tiny models that differ in how they generate."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.conftest import SIZES

ATTENTION = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}
WIDTH = SIZES["hidden_size"]
SETTINGS = {
    "llama": ATTENTION,
    "gpt2": {"vocab_size": 61, "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "qwen3_moe": {**ATTENTION, **EXPERTS},
    "mixtral": {**ATTENTION, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {**ATTENTION, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "recurrent_gemma": {**ATTENTION, "num_hidden_layers": 3, "lru_width": WIDTH, "attention_window_size": 16},
    "rwkv": {
        "vocab_size": 61, "hidden_size": WIDTH, "attention_hidden_size": WIDTH, "num_hidden_layers": 2,
        "intermediate_size": 48, "context_length": 64,
    },
    "doge": {**ATTENTION, "is_moe": True, "num_experts": 4, "num_experts_per_tok": 2},
}  # fmt: skip


def make(kind: str, scale: float = 3.0, **changes) -> PreTrainedModel:
    """A random model, whose matrices are scaled up so that its next token depends on what it has read."""
    torch.manual_seed(0)
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**ids, **SETTINGS[kind], **changes}))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale if p.ndim > 1 else 1.0)
    return model.eval()
