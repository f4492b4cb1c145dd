"""The first-batch check stops the run at each planted mistake and accepts correct scores."""

import pytest
import torch

from lightning_dpo import CopyReference
from lightning_dpo.scoring import Scorer
from lightning_dpo.scoring import scorer as scoring
from lightning_dpo.scoring.first_batch import check_first_batch
from tests.conftest import gpt2, llama, random_pairs
from tests.test_module import trainer


def check(model, batch=None, scoring_="auto"):
    reference = CopyReference()
    reference.bind(model, load=None, scoring=scoring_)
    reference.prepare(model, trainer())
    check_first_batch(Scorer(model, scoring_), batch or random_pairs(), {"the reference": reference})


def test_correct_scores_pass(model):
    check(model)


def test_correct_scores_pass_in_bfloat16():
    check(llama().bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        check(llama())


LAYOUTS = {"padded": "padded_groups", "shared_prefix": "shared_prefix"}


def spoil(monkeypatch, scoring_: str, change) -> None:
    """`change` takes a layout and returns its replacement."""
    right = getattr(scoring, LAYOUTS[scoring_])

    def wrong(*arguments):
        layouts = right(*arguments)
        return [change(layout) for layout in layouts] if isinstance(layouts, list) else change(layouts)

    monkeypatch.setattr(scoring, LAYOUTS[scoring_], wrong)


def shift_by_one(predictors):
    return predictors - 1


def score_the_last_prompt_token_but_not_the_end(predictors):
    return torch.cat([predictors[:1], predictors[:-1]])


@pytest.mark.parametrize("scoring_", LAYOUTS)
@pytest.mark.parametrize("plant", [shift_by_one, score_the_last_prompt_token_but_not_the_end])
def test_wrong_predictors_stop_the_run(monkeypatch, plant, scoring_):
    spoil(monkeypatch, scoring_, lambda layout: layout._replace(predictors=plant(layout.predictors)))
    with pytest.raises(RuntimeError, match="first-batch check: the policy's"):
        check(llama(), scoring_=scoring_)


def hide_prompt(inputs):
    inputs["attention_mask"][:, 0] = 0


def shift_positions(inputs):
    inputs["position_ids"] += 1


def do_not_restart_positions(inputs):
    inputs["position_ids"] = torch.arange(inputs["position_ids"].shape[1])[None]


@pytest.mark.parametrize(
    ("family", "plant", "scoring_"),
    [
        (llama, hide_prompt, "padded"),
        (gpt2, shift_positions, "padded"),
        (gpt2, shift_positions, "shared_prefix"),
        (gpt2, do_not_restart_positions, "shared_prefix"),
    ],
)
def test_a_wrong_mask_or_wrong_position_ids_stop_the_run(monkeypatch, family, plant, scoring_):
    def planted(layout):
        plant(layout.inputs)
        return layout

    spoil(monkeypatch, scoring_, planted)
    with pytest.raises(RuntimeError, match="first-batch check"):
        check(family(), scoring_=scoring_)


def test_cached_values_of_other_rows_stop_the_run():
    from lightning_dpo import CachedReference

    batch, model = random_pairs(), llama()
    with torch.no_grad():
        batch.reference = Scorer(model)(batch)
    reference = CachedReference()
    check_first_batch(Scorer(model), batch, {"the reference": reference})
    batch.reference.chosen.values = batch.reference.chosen.values.roll(1)
    with pytest.raises(RuntimeError, match="first-batch check: the reference"):
        check_first_batch(Scorer(model), batch, {"the reference": reference})
