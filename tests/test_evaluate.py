"""Scoring held-out pairs from Python: `trainer.test` and `trainer.predict`, of files and of rows."""

import json
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_dpo import CachedReference, CopyReference, DPOModule, PreferenceDataModule, losses
from lightning_dpo.demo import ASSETS
from lightning_dpo.errors import DataError
from lightning_dpo.models import load_model
from lightning_dpo.scoring.scorer import full_logits_logps
from tests.conftest import random_pairs
from tests.test_module import DPO, perturbed, trainer

MODEL = ASSETS / "model"


def held_out(path, **options) -> PreferenceDataModule:
    return PreferenceDataModule(MODEL, train=None, val=path, batch_size=20, **options)


def trained() -> DPOModule:
    """A policy that differs from its reference."""
    return perturbed(DPOModule(load_model(str(MODEL)), DPO, CopyReference()))


def test_a_test_measures_what_a_validation_does(few_reviews):
    run, evaluate = trained(), trainer()
    (val,) = evaluate.validate(run, held_out(few_reviews), verbose=False)
    (test,) = evaluate.test(run, held_out(few_reviews), verbose=False)
    assert test == {name.replace("val/", "test/"): value for name, value in val.items()} and "test/loss" in test
    found = evaluate.test(run, held_out({"a": few_reviews, "b": few_reviews}), verbose=False)
    merged = {name: value for part in found for name, value in part.items()}
    assert merged["test/a/loss"] == merged["test/loss"] == test["test/loss"]


def test_own_loaders_do_not_take_the_names_of_a_data_module(few_reviews):
    run, evaluate = trained(), trainer()
    evaluate.test(run, held_out({"a": few_reviews, "b": few_reviews}), verbose=False)
    (found,) = evaluate.test(run, DataLoader([random_pairs(vocabulary=90)], batch_size=None), verbose=False)
    assert "test/loss" in found and not [name for name in found if name.startswith("test/a/")]


def test_a_prediction_has_every_metric_of_each_pair(few_reviews):
    run = trained()
    parts = trainer().predict(run, held_out(few_reviews))
    index = torch.cat([part["index"] for part in parts])
    assert index.tolist() == list(range(48))
    data = held_out(few_reviews)
    data.setup()
    for row in (0, 31):
        batch = data.val_sets["val"].select([row])
        own = full_logits_logps(run.policy, batch.prompt.row(0), batch.chosen.row(0)).sum()
        found = torch.cat([part["logps/chosen"] for part in parts])[row]
        torch.testing.assert_close(found.double(), own.detach(), atol=1e-4, rtol=0)
    margins = torch.cat([part["rewards/chosen"] - part["rewards/rejected"] for part in parts])
    torch.testing.assert_close(margins, torch.cat([part["rewards/margins"] for part in parts]))


def test_rows_from_python_score_like_those_of_a_file(few_reviews):
    rows = [json.loads(line) for line in few_reviews.read_text().splitlines()]
    run = trained()
    parts = trainer().predict(run, held_out(few_reviews))
    (found,) = trainer().predict(run, DataLoader([held_out(few_reviews).batch(rows)], batch_size=None))
    for name, values in found.items():
        torch.testing.assert_close(values, torch.cat([part[name] for part in parts]), atol=1e-5, rtol=1e-5)
    with pytest.raises(DataError, match="row 2: .*rejected"):
        held_out(few_reviews).batch([rows[0], {"prompt": "a", "chosen": "b"}])


def test_a_cached_reference_covers_held_out_pairs(few_reviews, tmp_path):
    run = DPOModule(load_model(str(MODEL)), partial(losses.ipo, beta=0.1), CachedReference(cache_dir=tmp_path))
    (test,) = trainer().test(run, held_out(few_reviews), verbose=False)
    assert test["test/displacement/chosen_up"] == pytest.approx(0, abs=1e-5)


def test_training_without_pairs_to_train_on_is_refused(few_reviews):
    with pytest.raises(DataError, match="data.train=null"):
        trainer().fit(trained(), datamodule=held_out(few_reviews))
