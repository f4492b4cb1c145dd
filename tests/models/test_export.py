"""The exported model stops where training taught it to stop."""

import json

import pytest
from transformers import AutoModelForCausalLM, LogitsProcessor

from lightning_dpo.demo import ASSETS
from lightning_dpo.models import load_tokenizer
from lightning_dpo.models.export import export
from tests.conftest import llama

TURN = 7


class Then(LogitsProcessor):
    """Lets these tokens follow, one each step."""

    def __init__(self, tokens):
        self.tokens = iter(tokens)

    def __call__(self, input_ids, scores):
        return scores.new_full(scores.shape, float("-inf")).index_fill(1, input_ids.new_tensor([next(self.tokens)]), 0)


def written(tmp_path, before, stop_ids, **config) -> tuple[dict, str]:
    """generation_config.json and the sentence, for a model whose generation stopped at `before`."""
    model = llama(vocab_size=90, **config)
    model.generation_config.eos_token_id = before
    said = export(model, load_tokenizer(ASSETS / "model"), tmp_path, "card\n", stop_ids=stop_ids)
    assert model.generation_config.eos_token_id == before, "the policy keeps its settings"
    return json.loads((tmp_path / "generation_config.json").read_text()), said


@pytest.mark.parametrize(
    ("before", "after"), [(2, [2, TURN]), ([3, 2], [3, 2, TURN]), (None, [2, TURN])], ids=["one", "list", "none"]
)
def test_the_trained_end_of_turn_joins_the_ends_that_were_there(tmp_path, before, after):
    written(tmp_path, before, [2, TURN])
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.generation_config.eos_token_id == after
    for end in after:
        follow = [Then([11, end, 12, 13, 14, 15])]
        ids = model.generate(model.dummy_inputs["input_ids"][:1], max_new_tokens=6, logits_processor=follow)
        assert ids[0, -2:].tolist() == [11, end]


def test_it_is_said_with_the_tokens_names(tmp_path):
    token = load_tokenizer(ASSETS / "model").convert_ids_to_tokens(TURN)
    _, said = written(tmp_path, 2, [2, TURN])
    assert (
        said == f"generation stops at `{token}` (id 7), as completions do in training, and at `</s>` (id 2), as before"
    )
    assert (tmp_path / "README.md").read_text() == f"card\n- {said}\n"


def test_without_ends_of_its_own_generation_keeps_those_of_the_configuration(tmp_path):
    assert written(tmp_path, None, [TURN], eos_token_id=5)[0]["eos_token_id"] == [5, TURN]


def test_settings_that_transformers_would_not_save_do_not_end_the_export(tmp_path):
    """A temperature without sampling, as some published models have."""
    model = llama(vocab_size=90)
    model.save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": 2, "temperature": 0.6}))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    export(base, load_tokenizer(ASSETS / "model"), tmp_path / "export", "", stop_ids=[TURN])
    settings = json.loads((tmp_path / "export" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [2, TURN] and settings["temperature"] == 0.6


def test_nothing_is_written_or_said_if_generation_stops_there_already(tmp_path):
    _, said = written(tmp_path / "new", [2, TURN], [TURN])
    written(tmp_path / "old", [2, TURN], [])
    files = [(tmp_path / name / "generation_config.json").read_bytes() for name in ("new", "old")]
    assert files[0] == files[1] and said == "" and (tmp_path / "new" / "README.md").read_text() == "card\n"
