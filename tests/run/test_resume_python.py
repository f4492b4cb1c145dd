"""Fits from Python, with a plain Trainer: each starts where it should, and a checkpoint resumes exactly."""

import copy
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.optim import AdamW

from lightning_dpo import CachedReference, CopyReference, DPOModule, PreferenceDataModule, losses
from lightning_dpo.demo import ASSETS
from lightning_dpo.models import load_model
from lightning_dpo.optim import schedule
from tests.test_module import DPO, trainer, weights

STEPS = 6
"""Optimizer steps of an epoch: 48 pairs in batches of 8."""


STEEP = partial(AdamW, lr=1e-3)


class Losses(Callback):
    """The losses of the steps, by step number."""

    def __init__(self):
        self.by_step: dict[int, float] = {}

    def on_train_batch_end(self, trainer, *args) -> None:
        self.by_step[trainer.global_step] = float(trainer.callback_metrics["train/loss"])


@pytest.fixture
def data(few_reviews):
    def build(**options) -> PreferenceDataModule:
        return PreferenceDataModule(ASSETS / "model", few_reviews, **{"batch_size": 8, **options})

    return build


def module(reference=None, beta: float = 0.1) -> DPOModule:
    model = load_model(str(ASSETS / "model"))
    constant = partial(schedule, name="constant")
    return DPOModule(model, partial(losses.dpo, beta=beta), reference or CopyReference(), STEEP, constant)


def fit(run: DPOModule, pairs: PreferenceDataModule, ckpt_path=None, **options) -> dict[int, float]:
    """The losses of the optimizer steps."""
    seen = Losses()
    trainer(callbacks=[seen, *options.pop("callbacks", ())], **options).fit(run, datamodule=pairs, ckpt_path=ckpt_path)
    return seen.by_step


@pytest.mark.parametrize("before", ["a fit", "two epochs", "fast_dev_run", "a step", "an error"])
def test_one_data_module_serves_many_fits(data, before):
    """A notebook's loop over betas: each fit trains every step, as with a data module of its own."""
    alone = fit(module(), data())
    shared = data()
    options = {"two epochs": {"max_epochs": 2}, "fast_dev_run": {"fast_dev_run": True}, "a step": {"max_steps": 1}}

    class Fails(Callback):
        def on_train_batch_end(self, *args) -> None:
            raise RuntimeError("a mistake in a cell")

    if before == "an error":
        with pytest.raises(RuntimeError, match="a mistake"):
            fit(module(), shared, callbacks=[Fails()])
    else:
        fit(module(), shared, **options.get(before, {}))
    assert len(alone) == STEPS and fit(module(), shared) == alone


def test_loaders_that_are_built_anew_each_epoch_train_each_epoch(data):
    assert fit(module(), data(), max_epochs=2, reload_dataloaders_every_n_epochs=1) == fit(
        module(), data(), max_epochs=2
    )


@pytest.mark.parametrize("end", [2, STEPS, STEPS + 2])
@pytest.mark.parametrize("options", [{"batch_size": 8}, {"batch_size": 8, "max_tokens": 400}], ids=["pairs", "tokens"])
def test_a_fit_that_max_steps_ended_goes_on_with_the_rest(data, tmp_path, end, options):
    whole_module, parts, resumed = module(), module(), module()
    whole = fit(whole_module, data(**options), max_epochs=2)
    run = trainer(max_epochs=2, max_steps=end)
    run.fit(parts, datamodule=data(**options))
    run.save_checkpoint(tmp_path / "end.ckpt")
    rest = fit(resumed, data(**options), ckpt_path=tmp_path / "end.ckpt", max_epochs=2)
    assert rest == {step: loss for step, loss in whole.items() if step > end}
    assert torch.equal(weights(resumed), weights(whole_module))


@pytest.mark.parametrize("step", [1, STEPS - 1, STEPS, STEPS + 1])
def test_every_checkpoint_of_lightning_resumes_exactly(data, tmp_path, step):
    whole_module, resumed = module(), module()
    saves = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=step, save_top_k=-1)
    whole = fit(whole_module, data(), max_epochs=2, callbacks=[saves], enable_checkpointing=True)
    rest = fit(resumed, data(), ckpt_path=tmp_path / f"step={step}.ckpt", max_epochs=2)
    assert rest == {number: loss for number, loss in whole.items() if number > step}
    assert torch.equal(weights(resumed), weights(whole_module))


def test_another_batch_size_resumes_at_the_same_pair(data, tmp_path):
    seen: list[list[int]] = []

    class Rows(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            seen.append(batch.index.tolist())

    fit(module(), data(), callbacks=[Rows()])
    order = [row for batch in seen for row in batch]
    run = trainer(max_steps=2)
    run.fit(module(), datamodule=data())
    run.save_checkpoint(tmp_path / "two.ckpt")
    for size, sizes in ((3, [3] * 10 + [2]), (24, [24, 8]), (10, [10, 10, 10, 2])):
        seen.clear()
        fit(module(), data(batch_size=size), ckpt_path=tmp_path / "two.ckpt", callbacks=[Rows()])
        assert [len(batch) for batch in seen] == sizes
        assert [row for batch in seen for row in batch] == order[16:]


@pytest.mark.parametrize("reference", [CopyReference, CachedReference])
def test_a_second_round_starts_at_its_reference(data, tmp_path, reference):
    """The policy of the first round, loaded from its checkpoint, is the reference of the second."""
    first = module()
    run = trainer()
    run.fit(first, datamodule=data())
    run.save_checkpoint(tmp_path / "first.ckpt")
    second = DPOModule.load_from_checkpoint(tmp_path / "first.ckpt", reference=reference())
    assert torch.equal(weights(second), weights(first))
    losses_of_steps = fit(second, data(shuffle=False))
    assert losses_of_steps[1] == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-6)
    assert losses_of_steps[2] != losses_of_steps[1]


@pytest.mark.parametrize("reference", [CopyReference, CachedReference])
def test_a_reference_serves_the_module_that_it_was_given_to_last(data, reference):
    shared, pairs, policy = reference(), data(shuffle=False), load_model(str(ASSETS / "model"))
    for _ in range(2):
        run = DPOModule(copy.deepcopy(policy), DPO, shared, STEEP)
        found = fit(run, pairs)
        assert found[1] == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-6) and found[2] != found[1]
        policy = run.policy


def test_the_first_batch_check_compares_a_copied_reference_after_a_checkpoint(data, tmp_path, monkeypatch):
    run = trainer(max_steps=1)
    run.fit(module(), datamodule=data())
    run.save_checkpoint(tmp_path / "first.ckpt")
    compared = []
    monkeypatch.setattr(
        "lightning_dpo.module.check_first_batch", lambda s, b, equal, needs: compared.append(set(equal))
    )
    for reference in (CopyReference(), CopyReference(path=str(ASSETS / "model"))):
        fit(DPOModule.load_from_checkpoint(tmp_path / "first.ckpt", reference=reference), data(), max_steps=1)
    assert compared == [{"the reference"}, set()]
