"""Embeddings for added tokens: the same in every run, for the policy and for the reference that it starts from."""

import json
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_dpo import CachedReference, CopyReference, DPOModule, PreferenceDataModule, losses
from lightning_dpo.demo import ASSETS
from lightning_dpo.models import load_model, load_tokenizer, resize_embeddings
from tests.test_module import trainer

CHAT = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} <|turn|> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
ROWS = [("a dull film", "so witty", "so bland"), ("a short film", "a bland plot", "a clever plot")] * 8


@pytest.fixture
def extended(tmp_path):
    """The bundled tokenizer with a token for the end of a turn; the model has no row for it."""
    tokenizer = load_tokenizer(ASSETS / "model")
    tokenizer.add_tokens(["<|turn|>"], special_tokens=True)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(tmp_path / "extended")
    return tmp_path / "extended"


@pytest.fixture
def chats(tmp_path):
    path = tmp_path / "chats.jsonl"
    rows = [{"prompt": [{"role": "user", "content": p}], "chosen": c, "rejected": r} for p, c, r in ROWS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def resized(extended, **options):
    model = load_model(str(ASSETS / "model"), **options)
    resize_embeddings(model, load_tokenizer(extended))
    return model


def test_new_rows_are_the_same_whatever_was_drawn_before_and_old_rows_stay(extended):
    old, first = load_model(str(ASSETS / "model")), resized(extended)
    torch.manual_seed(5)
    state, second = torch.get_rng_state(), resized(extended)
    assert torch.equal(torch.get_rng_state(), state), "later draws of the run do not change"
    rows = old.config.vocab_size
    assert first.config.vocab_size == rows + 1 and first.state_dict().keys() == old.state_dict().keys()
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])
        assert torch.equal(weight[:rows] if len(weight) == rows + 1 else weight, old.state_dict()[name])
    mean = old.get_input_embeddings().weight.mean(0)
    torch.testing.assert_close(first.get_input_embeddings().weight[-1], mean)


def test_tied_embeddings_stay_tied_and_no_model_gets_smaller(extended, tmp_path):
    shutil.copytree(ASSETS / "model", tmp_path / "tied")
    tied = load_model(str(ASSETS / "model"))
    tied.config.tie_word_embeddings = True
    tied.tie_weights()
    tied.save_pretrained(tmp_path / "tied")
    model = load_model(str(tmp_path / "tied"))
    resize_embeddings(model, load_tokenizer(extended))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    before = model.config.vocab_size
    resize_embeddings(model, load_tokenizer(ASSETS / "model"))
    assert model.config.vocab_size == before


@pytest.mark.parametrize("reference", [CopyReference, CachedReference])
def test_the_reference_is_the_resized_policy_at_its_start(extended, chats, reference, tmp_path):
    """Also where its weights are loaded a second time."""
    options = {"cache_dir": tmp_path / "cache"} if reference is CachedReference else {}
    run = DPOModule(resized(extended), partial(losses.dpo, beta=0.1), reference(**options))
    data = PreferenceDataModule(extended, chats, chats, cache_dir=tmp_path / "tokens")
    fitted = trainer(max_steps=1)
    fitted.fit(run, datamodule=data)
    with run.reference.live(fitted) as scorer:
        start = resized(extended).state_dict()
        assert all(torch.equal(weight, start[name]) for name, weight in scorer.model.state_dict().items())
    fitted.save_checkpoint(tmp_path / "run.ckpt")
    again = DPOModule.load_from_checkpoint(tmp_path / "run.ckpt")
    assert torch.equal(again.policy.lm_head.weight, run.policy.lm_head.weight)


def test_a_base_model_learns_chats_with_an_added_end_of_turn_and_stops_there(command, short, extended, chats, tmp_path):
    asked = [*short, f"data.train={chats}", "data.val=0.5", "data=jsonl", f"model.tokenizer={extended}", "samples.n=2"]
    code, output = command(*asked)
    assert code == 2 and "has token 90, but the model has 90 embeddings" in output
    assert "type model.resize_embeddings=true" in output
    code, output = command(*asked, "model.resize_embeddings=true", "samples.max_new_tokens=8")
    assert code == 0, output
    said = "generation stops at `<|turn|>` (id 90), as completions do in training, and at `</s>` (id 2), as before"
    exported = tmp_path / "run" / "model"
    assert said in output and said in (exported / "README.md").read_text()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(exported), AutoTokenizer.from_pretrained(exported)
    assert model.generation_config.eos_token_id == [2, 90] and model.config.vocab_size == 91
    assert tokenizer.eos_token_id == 2 and tokenizer("<|turn|>")["input_ids"] == [90]
    weights = load_file(exported / "model.safetensors")
    assert torch.equal(weights["model.embed_tokens.weight"], model.get_input_embeddings().weight)
    code, output = command(*asked, "model.resize_embeddings=true", "samples.max_new_tokens=8")
    assert code == 0 and "nothing is left to do" in output
