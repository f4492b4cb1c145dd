"""The first-batch check has teeth: each planted mistake stops the run, and right numbers pass."""

import pytest
import torch

from lightning_dpo import CopyReference, scoring
from lightning_dpo.checks import check_first_batch
from lightning_dpo.scoring import Layout, Scorer
from tests.conftest import gpt2, llama, random_pairs


def check(model, batch=None):
    reference = CopyReference()
    reference.bind(model, load=None)
    check_first_batch(Scorer(model), reference, batch or random_pairs())


def test_right_numbers_pass(model):
    check(model)


def test_right_numbers_pass_in_bfloat16():
    check(llama().bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        check(llama())


@pytest.mark.parametrize("planted", ["shift by one", "prompt scored", "end not scored"])
def test_a_wrong_choice_of_positions_stops_the_run(monkeypatch, planted):
    right = scoring.padded

    def wrong(prompt, response, side="right"):
        layout = right(prompt, response, side)
        if planted == "shift by one":
            return Layout(layout.inputs, layout.predictors - 1)
        predictors = layout.predictors.clone()
        # a whole response moved one token left (the prompt's last scored, the end not), or its last token repeated
        predictors[1:] = layout.predictors[:-1]
        return Layout(layout.inputs, predictors if planted == "prompt scored" else predictors.roll(-1).sort().values)

    monkeypatch.setattr(scoring, "padded", wrong)
    with pytest.raises(RuntimeError, match="first-batch check: the policy's padded path"):
        check(llama())


def hide_prompt(inputs):
    inputs["attention_mask"][:, 0] = 0


def shift_positions(inputs):
    inputs["position_ids"] += 1


@pytest.mark.parametrize(("family", "plant"), [(llama, hide_prompt), (gpt2, shift_positions)])
def test_a_wrong_mask_or_wrong_positions_stop_the_run(monkeypatch, family, plant):
    right = scoring.padded

    def wrong(prompt, response, side="right"):
        layout = right(prompt, response, side)
        plant(layout.inputs)
        return layout

    monkeypatch.setattr(scoring, "padded", wrong)
    with pytest.raises(RuntimeError, match="first-batch check"):
        check(family())


def test_cached_values_of_other_rows_stop_the_run():
    from lightning_dpo import CachedReference

    batch, model = random_pairs(), llama()
    with torch.no_grad():
        batch.reference = Scorer(model)(batch)
    reference = CachedReference()
    check_first_batch(Scorer(model), reference, batch)
    batch.reference.chosen.values = batch.reference.chosen.values.roll(1)
    with pytest.raises(RuntimeError, match="first-batch check: the reference"):
        check_first_batch(Scorer(model), reference, batch)
