"""A mixture of experts trains with its own load-balancing loss, which does not depend on the layout."""

import sys

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from lightning_dpo import CopyReference, DPOModule
from lightning_dpo.errors import ConfigError
from lightning_dpo.models import load_model, load_tokenizer
from lightning_dpo.models.export import export
from lightning_dpo.scoring import Scorer
from lightning_dpo.scoring.load_balancing import coefficient, load_balancing_loss
from tests.conftest import SIZES, llama, random_pairs
from tests.test_module import DPO, SGD, Rows, loader, trainer


def mixtral(**changes):
    torch.manual_seed(0)
    settings = {"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True}
    settings |= {"router_aux_loss_coef": 0.5, "intermediate_size": 48, "num_key_value_heads": 2}
    return MixtralForCausalLM(MixtralConfig(**{**SIZES, **settings, **changes})).eval()


@pytest.mark.parametrize("scoring", ["padded", "shared_prefix"])
def test_it_equals_the_models_own_loss_on_padded_sequences(scoring):
    model, batch = mixtral(), random_pairs()
    prompts, responses = batch.prompt.rows() * 2, (*batch.chosen.rows(), *batch.rejected.rows())
    rows = [torch.cat(row) for row in zip(prompts, responses, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    expected = model(input_ids=ids, attention_mask=mask).aux_loss
    torch.testing.assert_close(Scorer(model, scoring).score(batch).aux_loss, expected, rtol=1e-5, atol=0)


def test_it_is_added_with_the_models_coefficient_and_logged():
    batch, gradients, logged = random_pairs(), {}, {}
    for name, asked in (("with", True), ("without", False)):
        rows, run = Rows(), DPOModule(mixtral(output_router_logits=asked), DPO, CopyReference(), SGD)
        trainer(logger=rows, log_every_n_steps=1).fit(run, loader(batch, 6))
        gradients[name] = run.policy.model.layers[0].mlp.gate.weight.grad
        logged[name] = next(row for _, row in rows.rows if "train/loss" in row)
    fresh = mixtral()
    (0.5 * Scorer(fresh, "padded").score(batch).aux_loss).backward()
    own = fresh.model.layers[0].mlp.gate.weight.grad
    torch.testing.assert_close(gradients["with"] - gradients["without"], own, atol=1e-6, rtol=1e-4)
    assert logged["with"]["train/aux_loss"] > 1 and "train/aux_loss" not in logged["without"]
    assert logged["with"]["train/loss"] == pytest.approx(logged["without"]["train/loss"])


def test_router_aux_loss_coef_switches_the_loss_on_and_off(tmp_path):
    mixtral(output_router_logits=False).save_pretrained(tmp_path)
    batch = random_pairs()
    for weight, on in ((None, False), (0.25, True), (0.0, False)):
        model = load_model(str(tmp_path), router_aux_loss_coef=weight)
        assert (Scorer(model).score(batch).aux_loss is not None) == on
        assert not on or coefficient(model) == weight
    llama().save_pretrained(tmp_path / "dense")
    with pytest.raises(ConfigError, match="router_aux_loss_coef=0.1: LlamaForCausalLM has no experts"):
        load_model(str(tmp_path / "dense"), router_aux_loss_coef=0.1)


@pytest.mark.parametrize("own", [False, True])
def test_an_export_carries_the_setting_that_the_model_came_with(own, tmp_path, reviews):
    """With the loss on, transformers cannot generate from padded prompts."""
    mixtral(output_router_logits=own).save_pretrained(tmp_path / "own")
    model = load_model(str(tmp_path / "own"), router_aux_loss_coef=0.25)
    export(model, load_tokenizer(reviews / "model"), tmp_path / "export", "")
    assert MixtralConfig.from_pretrained(tmp_path / "export").output_router_logits == own
    assert model.config.output_router_logits and coefficient(model) == 0.25, "training goes on with it"


def test_experts_without_a_loss_in_transformers_are_refused_with_a_remedy(monkeypatch):
    model = mixtral(output_router_logits=True)
    monkeypatch.delattr(sys.modules[type(model).__module__], "load_balancing_loss_func")
    with pytest.raises(ConfigError, match="has no load-balancing loss in transformers.*router_aux_loss_coef=0"):
        load_balancing_loss(model, [])
