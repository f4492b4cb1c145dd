"""Causal language models of transformers, built tiny: the table that test_architectures.py runs."""

from typing import Literal, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

TINY = dict(
    vocab_size=61, hidden_size=32, n_embd=32, d_model=32, max_position_embeddings=128, n_positions=128, max_seq_len=128,
    num_hidden_layers=4, n_layer=4, n_layers=4, num_layers=4, decoder_layers=2, encoder_layers=2, num_blocks=2,
    num_attention_heads=4, n_head=4, n_heads=4, num_heads=4, decoder_attention_heads=4, encoder_attention_heads=4,
    num_key_value_heads=2, head_dim=8, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8,
    v_head_dim=4, query_pre_attn_scalar=8, intermediate_size=48, ffn_dim=48, ffn_hidden_size=48, n_inner=48,
    decoder_ffn_dim=48, encoder_ffn_dim=48, dense_intermediate_size=48, shared_intermediate_size=24,
    num_experts=4, num_local_experts=4, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=24,
    shared_expert_intermediate_size=24, moe_shared_expert_intermediate_size=24, n_shared_experts=1,
    moe_num_shared_experts=1, n_group=1, topk_group=1, first_k_dense_replace=1,
    sliding_window=8, use_sliding_window=True, max_window_layers=2, sliding_window_pattern=2, attention_chunk_size=8,
    index_topk=4, index_n_heads=32, index_head_dim=16, index_block_size=4, index_topk_blocks=2, keep_window_size=8,
    block_size=8, attn_layer_period=2, attn_layer_offset=1, state_size=8, chunk_size=8,
    mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=8, linear_num_heads=4, linear_head_dim=8,
    linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8,
    hidden_size_per_layer_input=8, vocab_size_per_layer_input=61, swa_num_attention_heads=4, swa_num_key_value_heads=2,
    swa_head_dim=8, is_decoder=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
"""Set for every key that a configuration has. Windows, chunks and top-k are shorter than the longest sequence."""

SCALE = 0.15
"""Standard deviation of the matrices. With transformers' own 0.02 all tokens are about equally likely, which hides
faults; with this one log-probabilities differ by about a nat from token to token."""


class Row(NamedTuple):
    """changes: to TINY, for this row. outcome: what scoring must do.

    agrees: both layouts give the numbers and gradients of single sequences. refused: padded rows give others, and the
    first-batch check says so. moves: padded rows give others on some responses, which the check may not meet.
    unscored: the scorer raises an error that says so; not in the table of the page. remark: why it does not agree.
    """

    changes: dict = {}
    outcome: Literal["agrees", "refused", "moves", "unscored"] = "agrees"
    remark: str = ""


PLAIN = """
    afmoe apertus apertus1p5_text arcee aria_text bart beam bert bert-generation big_bird bigbird_pegasus biogpt bitnet
    blenderbot blenderbot-small bloom ctrl cwm diffllama doge dory electra ernie ernie4_5 ernie4_5_moe
    exaone4 exaone_moe falcon falcon_mamba flex_olmo flint gemma gemma2 glm glm4 glm4_moe gpt2 gpt_bigcode gpt_neox
    gpt_neox_japanese gpt_oss granite granite_swa granitemoe granitemoe_swa granitemoeshared helium hrm_text
    hunyuan_v1_dense hunyuan_v1_moe hy_v3 hyperclovax jais2 jamba jetmoe lara_mini llama llama4_text mamba marian mbart
    megatron-bert mimo_v2_flash minimax_m2 minimax_m3_vl_text ministral ministral3 mistral mixtral modernbert-decoder
    moshi mpt mvp nanochat nemotron olmo olmo2 olmo3 olmoe openai-gpt opt pegasus persimmon phi phi3 phimoe plbart qwen2
    qwen2_moe qwen3 qwen3_moe recurrent_gemma rembert roformer rwkv seed_oss solar_open stablelm starcoder2 trocr
    vaultgemma whisper xglm xlstm
""".split()
LATENT = """
    axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa hy_v4 longcat_flash minicpm3 sarvam_mla
    youtu
""".split()
HEADS = {"num_key_value_heads": 4}
"""Latent attention has a key head for each query head."""
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"] * 2}
LINEAR = {"layer_types": ["linear_attention", "full_attention"] * 2}
CONVOLUTIONS = {"layer_types": ["conv", "full_attention"] * 2}
COMPASS = dict(rope_type="default", rope_theta=1e4, mrope_section=[2, 1, 1])
INKLING = dict(
    layer_types=["hybrid_sliding", "hybrid"] * 2, sliding_window_size=8, d_rel=4, rel_extent=16, unpadded_vocab_size=61
)
ZAMBA = dict(layers_block_type=["linear_attention"] * 2 + ["hybrid"] * 2, n_mamba_heads=8, attention_head_dim=16)
YARN = dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=16)
LONGROPE = dict(
    rope_type="longrope", rope_theta=1e4, short_factor=[1.0] * 4, long_factor=[4.0, 3.0, 2.0, 1.5],
    original_max_position_embeddings=50,
)  # fmt: skip
AFTER_PAD = Row({"pad_token_id": 1}, "refused", "its positions start after the pad id, scoring's start at 0")
ROW_LENGTH = "its rotary embedding depends on the longest row of a batch"

ROWS: dict[str, Row] = {
    **{name: Row() for name in PLAIN},
    **{name: Row(HEADS) for name in LATENT},
    **{name: Row(WINDOWS) for name in "dots1 gemma3_text gemma4_text gemma4_unified_text kolibri1".split()},
    **{name: Row(WINDOWS) for name in "laguna mellum smollm3".split()},
    **{name: Row(LINEAR) for name in "granitemoehybrid minimax olmo_hybrid qwen3_5_text qwen3_next".split()},
    "qwen3_5_moe_text": Row(LINEAR),
    **{name: Row(LINEAR | HEADS) for name in ("bailing_hybrid", "kimi_linear")},
    **{name: Row(CONVOLUTIONS) for name in ("lfm2", "lfm3")},
    **{name: Row({"rotary_dim": 4}) for name in ("codegen", "gptj")},
    **{name: Row({"logit_scale": 0.5}) for name in ("cohere", "cohere2", "cohere2_moe")},
    **{name: AFTER_PAD for name in "camembert data2vec-text roberta roberta-prelayernorm xlm-roberta".split()},
    "xlm-roberta-xl": AFTER_PAD,
    "xmod": AFTER_PAD._replace(changes={"pad_token_id": 1, "default_language": "en_XX"}),
    "bamba": Row({"attn_layer_indices": [1]}),
    "bert, not causal": Row({"is_decoder": False}, "unscored", "each token sees the later ones"),
    "cohere_compass_text": Row(WINDOWS | {"rope_parameters": dict.fromkeys(WINDOWS["layer_types"], COMPASS)}),
    "dbrx": Row(dict(
        attn_config=dict(kv_n_heads=2, rope_theta=1e4, clip_qkv=8.0),
        ffn_config=dict(moe_num_experts=4, moe_top_k=2, ffn_hidden_size=48),
    )),
    "deepseek_v4": Row(HEADS | dict(
        layer_types=["heavily_compressed_attention", "compressed_sparse_attention"] * 2,
        compress_rates={"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
    )),
    "deepseek_v32, 4 index heads": Row(
        HEADS | {"index_n_heads": 4}, "moves", "index scores of 0 tie; the row's length decides which are in the top k"
    ),
    "falcon, alibi": Row({"alibi": True}),
    "falcon_h1": Row({"mamba_d_ssm": 64}),
    "gemma3n_text": Row(WINDOWS | dict(num_kv_shared_layers=2, laurel_rank=8, activation_sparsity_pattern=[0.0] * 4)),
    "gpt2, scaled by layer": Row({"scale_attn_by_inverse_layer_idx": True}),
    "gpt_neo": Row(dict(attention_types=[[["global", "local"], 2]], window_size=8)),
    "inkling_text": Row(INKLING | {"logits_mup_width_multiplier": 1.0}),
    "inkling2_text": Row(INKLING),
    "lfm2_moe": Row(CONVOLUTIONS | {"num_dense_layers": 1}),
    "llama, dynamic RoPE": Row(
        dict(max_position_embeddings=16, rope_parameters=dict(rope_type="dynamic", rope_theta=1e4, factor=4.0)),
        "unscored", ROW_LENGTH,
    ),
    "llama, tied embeddings": Row({"tie_word_embeddings": True}),
    "llama, yarn": Row({"rope_parameters": YARN}),
    "mamba2": Row({"num_heads": 8, "n_groups": 1}),
    "nemotron_h": Row(dict(mamba_num_heads=8, mamba_head_dim=8, ssm_state_size=8, n_groups=1)),
    "phi3, longrope": Row(
        dict(original_max_position_embeddings=50, rope_parameters=LONGROPE), "unscored", ROW_LENGTH
    ),
    "prophetnet": Row({}, "refused", "its numbers change with the row's length and with later tokens"),
    "qwen4_exp_text": Row(dict(
        layer_types=["linear_attention", "indexed_attention"] * 2, indexer_n_heads=4, indexer_kv_heads=1,
        indexer_head_dim=16, indexer_budget=8, indexer_compress_ratio=2, ngram_vocab_size_base=50, split_ngram_parts=2,
        make_ngram_vocab_size_divisible_by=2,
    )),
    "roc_bert": Row(dict(
        pronunciation_vocab_size=61, pronunciation_embed_dim=8, shape_vocab_size=61, shape_embed_dim=8
    )),
    "zamba": Row(ZAMBA | {"n_mamba_heads": 2}),
    "zamba2": Row(ZAMBA | dict(mamba_ngroups=1, mamba_headdim=8, num_mem_blocks=1, adapter_rank=4)),
    "zaya": Row({"num_experts_per_tok": 1}),
}  # fmt: skip


def built(name: str) -> PreTrainedModel:
    """The row's model. A row is named by its model type, and by what sets it apart after a comma."""
    model_type = name.split(",")[0]
    default = AutoConfig.for_model(model_type)
    known = default.to_dict().keys() | getattr(default, "attribute_map", {}).keys()
    tiny = {key: value for key, value in TINY.items() if key in known}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **(tiny | ROWS[name].changes))).eval()
    for weight in model.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1)  # a zero would hide what it multiplies
        elif weight.dim() > 1 and 0.005 < (std := weight.std().item()) < 0.05:
            weight.data *= SCALE / std  # matrices only: the parameters of gates and states start at other scales
    return model
