"""A model that loads is the model of its folder: complete, finite, causal, and fit for the data."""

import json
import logging
import shutil

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPVisionConfig,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Phi3Config,
    Phi3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from lightning_dpo import CachedReference, CopyReference, DPOModule, PreferenceDataModule
from lightning_dpo.demo import ASSETS
from lightning_dpo.errors import ConfigError
from lightning_dpo.models import load_model, load_tokenizer, positions
from lightning_dpo.models.export import export
from lightning_dpo.scoring import Scorer
from tests.conftest import SIZES, llama, random_pairs
from tests.test_module import DPO, SGD, loader, module, trainer


@pytest.fixture
def folder(tmp_path):
    """A tiny Llama in a folder, with changed weights or keys of its configuration."""

    def save(change=lambda weights: None, name="model", **config):
        path = tmp_path / name
        llama().save_pretrained(path)
        weights = load_file(path / "model.safetensors")
        change(weights)
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
        keys = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(keys | config))
        return str(path)

    return save


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("lm_head.weight"), r"1 weights of LlamaForCausalLM are missing .* lm_head.weight"),
        (lambda w: w.update({"lm_head.weight": torch.ones(30, 32)}), r"are mismatched .*lm_head.weight"),
        (lambda w: w["model.norm.weight"].fill_(float("nan")), r"1 weights are NaN or infinite: model.norm.weight"),
    ],
    ids=["missing", "mismatched", "nan"],
)
def test_weights_that_are_missing_or_broken_are_named(folder, change, message):
    with pytest.raises(ConfigError, match=message):
        load_model(folder(change))


def test_weights_that_are_zero_and_tensors_that_are_left_over_are_warned_about(folder, caplog):
    def change(weights):
        weights["lm_head.weight"].zero_()
        weights["vision_tower.patches"] = torch.ones(2)

    with caplog.at_level(logging.WARNING):
        load_model(folder(change))
    assert "1 weight matrices are all zero, as after a failed save: lm_head.weight" in caplog.text
    assert "1 tensors are not part of LlamaForCausalLM, so they are neither trained nor exported: vis" in caplog.text


def test_quantised_weights_are_refused(folder):
    with pytest.raises(ConfigError, match=r"its weights are quantised \(gptq\) and take no gradient"):
        load_model(folder(quantization_config={"quant_method": "gptq", "bits": 4}))


def test_other_kinds_of_models_are_refused_in_one_line_with_their_kind(tmp_path):
    t5 = T5Config(vocab_size=61, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4)
    T5ForConditionalGeneration(t5).save_pretrained(tmp_path / "t5")
    vision = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, image_size=28)
    text = LlamaConfig(**SIZES, intermediate_size=48)
    llava = LlavaConfig(text_config=text, vision_config=CLIPVisionConfig(**vision, patch_size=14), image_token_index=5)
    LlavaForConditionalGeneration(llava).save_pretrained(tmp_path / "llava")
    for name, kind in (("t5", "t5 is an encoder-decoder model"), ("llava", "llava is a model of images and text")):
        with pytest.raises(ConfigError, match=kind) as error:
            load_model(str(tmp_path / name))
        assert "\n" not in str(error.value)


def longrope(original: int = 12) -> Phi3ForCausalLM:
    torch.manual_seed(0)
    factors = {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0], "rope_type": "longrope"}
    rope = {**factors, "rope_theta": 1e4, "original_max_position_embeddings": original}
    sizes = dict(SIZES, intermediate_size=48, num_key_value_heads=2, pad_token_id=0, max_position_embeddings=64)
    return Phi3ForCausalLM(Phi3Config(**sizes, rope_parameters=rope, original_max_position_embeddings=original)).eval()


def test_rows_whose_length_would_change_the_angles_of_others_are_refused():
    """Beside a long row, a short one would get other log-probabilities."""
    model, pairs = longrope(), random_pairs()
    lengths = pairs.prompt.lengths + torch.maximum(pairs.chosen.lengths, pairs.rejected.lengths)
    assert positions(model.config) == 12 and int(lengths.max()) > 12 >= int(lengths.min())
    short = pairs.select([int(lengths.argmin())])
    for scoring in ("auto", "padded"):
        assert Scorer(model, scoring)(short).chosen.values.isfinite().all()
        with pytest.raises(ConfigError, match="type data.max_length=12"):
            Scorer(model, scoring)(pairs)
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    for other in ({}, {"original_max_position_embeddings": 16}):  # which this type does not read
        assert positions(llama(rope_parameters=rope | other).config) == 64


def test_weights_in_float16_are_refused_for_adam():
    run = DPOModule(llama().half(), DPO, CopyReference())
    with pytest.raises(ConfigError, match="weights in float16: the moments of AdamW round to 0, and its eps=1e-08"):
        trainer().fit(run, loader(random_pairs(), 3))
    trainer().fit(DPOModule(llama().half(), DPO, CopyReference(), SGD), loader(random_pairs(), 3))


@pytest.mark.parametrize("option", ["model.dtype=float16", "trainer.precision=16-true"])
def test_the_command_refuses_them_before_anything_loads(command, short, option):
    code, output = command(*short, option)
    assert code == 2 and "weights in float16" in output and "reference log" not in output


def test_outside_of_a_step_the_policy_is_the_plain_model():
    run, pairs, ids = module(), random_pairs(), torch.arange(7)[None]

    seen = []

    class Looks(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args) -> None:
            seen.append(pl_module.policy(input_ids=ids).logits.shape)
            pl_module.policy.generate(ids, max_new_tokens=2, do_sample=False)

    trainer(callbacks=[Looks()], accumulate_grad_batches=2).fit(run, loader(pairs, 2))
    assert run.scorer.layout == "shared_prefix" and len(seen) == 3


def test_outside_of_a_trainer_it_is_too():
    run, pairs = module(), random_pairs()
    run.predict_step(pairs)
    run.scorer(pairs).chosen.values.sum().backward()
    assert run.policy(input_ids=torch.arange(7)[None]).logits.isfinite().all()


def test_a_failed_step_leaves_the_plain_model():
    run = module()
    run.loss = lambda logps: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer().fit(run, loader(random_pairs(), 2))
    assert run.policy(input_ids=torch.arange(7)[None]).logits.isfinite().all()


def test_an_adapter_is_refused_with_what_to_pass_instead():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(llama(), peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ConfigError, match="merge_and_unload"):
        DPOModule(model, DPO, CopyReference())


def test_tied_weights_are_exported_once_whatever_their_dtype(tmp_path):
    export(llama(tie_word_embeddings=True), load_tokenizer(ASSETS / "model"), tmp_path, "in {dtype}", "bfloat16")
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert (tmp_path / "README.md").read_text() == "in bfloat16"
    again = load_model(str(tmp_path))
    assert torch.equal(again.lm_head.weight, llama(tie_word_embeddings=True).lm_head.weight.bfloat16().float())


def test_what_a_model_keeps_in_float32_stays_so_in_the_export(tmp_path):
    sizes = dict(SIZES, intermediate_size=48, moe_intermediate_size=16, n_routed_experts=4, n_group=1, topk_group=1)
    latent = dict(q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8)
    torch.manual_seed(0)
    model = DeepseekV3ForCausalLM(DeepseekV3Config(**sizes, **latent, num_experts_per_tok=2, first_k_dense_replace=1))
    export(model, load_tokenizer(ASSETS / "model"), tmp_path, "", "bfloat16")
    dtypes = {name: value.dtype for name, value in load_file(tmp_path / "model.safetensors").items()}
    in_float32 = {name.rpartition(".")[2] for name, dtype in dtypes.items() if dtype == torch.float32}
    assert "e_score_correction_bias" in in_float32 and dtypes["lm_head.weight"] == torch.bfloat16


def test_an_adapter_without_its_model_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="an adapter without its model"):
        load_model(str(tmp_path))


@pytest.fixture
def other(tmp_path):
    """The bundled model in another folder, with changes to its tokenizer's vocabulary and to its configuration."""

    def save(swap: tuple[str, str] | None = None, **config):
        path = tmp_path / "other"
        shutil.copytree(ASSETS / "model", path, dirs_exist_ok=True)
        text = (path / "tokenizer.json").read_text()
        if swap:
            tokenizer = json.loads(text)
            vocabulary = tokenizer["model"]["vocab"]
            a, b = swap
            vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
            text = json.dumps(tokenizer)
        (path / "tokenizer.json").write_text(text)
        keys = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(keys | config))
        return str(path)

    return save


@pytest.mark.parametrize("reference", [CopyReference, CachedReference])
def test_a_reference_with_another_tokenizer_is_refused(few_reviews, other, reference):
    path = other(swap=("dull", "clever"))
    run = DPOModule(load_model(str(ASSETS / "model")), DPO, reference(path=path))
    data = PreferenceDataModule(ASSETS / "model", few_reviews)
    for _ in range(2):  # as when a cell of a notebook runs again
        with pytest.raises(ConfigError, match=r"reference.path=.*other: its tokenizer gives .* the ids"):
            trainer().fit(run, datamodule=data)


@pytest.mark.parametrize("reference", [CopyReference, CachedReference])
def test_a_reference_with_fewer_positions_or_embeddings_is_refused(few_reviews, other, reference):
    run = DPOModule(load_model(str(ASSETS / "model")), DPO, reference(path=other(max_position_embeddings=8)))
    with pytest.raises(ConfigError, match=r"reference.path=.*the longest pair of .* the model has 8 positions"):
        trainer().fit(run, datamodule=PreferenceDataModule(ASSETS / "model", few_reviews))
    small = llama(vocab_size=40, max_position_embeddings=512)
    path = other()
    shutil.rmtree(path)
    small.save_pretrained(path)
    run = DPOModule(load_model(str(ASSETS / "model")), DPO, reference(path=path))
    with pytest.raises(ConfigError, match=r"reference.path=.* has token \d+, but the model has 40 embeddings"):
        trainer().fit(run, datamodule=PreferenceDataModule(ASSETS / "model", few_reviews))
