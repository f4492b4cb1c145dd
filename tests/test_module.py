"""DPOModule under a plain lightning.Trainer."""

from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from torch.utils.data import DataLoader

from lightning_dpo import CopyReference, DPOModule, PreferenceDataModule, losses
from lightning_dpo.errors import DataError
from lightning_dpo.losses import ReferenceRequired
from tests.conftest import gpt2, llama, random_pairs
from tests.pairs import tree_pairs

SGD = partial(torch.optim.SGD, lr=0.1)
DPO = partial(losses.dpo, beta=0.1)


def trainer(**options) -> L.Trainer:
    settings = dict(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_epochs=1
    )
    return L.Trainer(**{**settings, "enable_model_summary": False, "num_sanity_val_steps": 0, **options})


def loader(pairs, batch_size: int) -> DataLoader:
    return DataLoader(range(len(pairs)), batch_size=batch_size, collate_fn=pairs.select)  # type: ignore[arg-type]


def perturbed(module: DPOModule) -> DPOModule:
    """With a policy that differs from its reference; equal ones have margins of zero, which hide most mistakes."""
    if module.reference is not None:
        module.reference.prepare(module.policy, trainer())
        module.reference.is_policy = False
    torch.manual_seed(9)
    with torch.no_grad():
        for p in module.policy.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return module


def module(loss=DPO, optimizer=SGD, model=None) -> DPOModule:
    return perturbed(DPOModule(model or llama(), loss, CopyReference(), optimizer))


def weights(run: DPOModule) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.policy.parameters()])


def weights_after(batch_size: int, accumulate: int, pairs: int, loss=DPO) -> torch.Tensor:
    run = module(loss)
    trainer(accumulate_grad_batches=accumulate).fit(run, loader(random_pairs(pairs), batch_size))
    return weights(run)


@pytest.mark.parametrize("loss", [DPO, partial(losses.ipo, beta=0.5)])
def test_a_step_is_the_mean_over_its_pairs_whatever_its_micro_batches(loss):
    whole = weights_after(8, 1, 8, loss)
    torch.testing.assert_close(weights_after(2, 4, 8, loss), whole, atol=1e-6, rtol=1e-5)
    # with 3 + 3 + 2 pairs, a mean of means would give the last pairs more weight
    torch.testing.assert_close(weights_after(3, 3, 8, loss), whole, atol=1e-6, rtol=1e-5)


def test_a_smaller_last_window_is_the_mean_over_its_pairs():
    """10 micro-batches of 1 pair, 4 per step: the last step has 2 pairs, and its gradient is not halved."""
    run = module(optimizer=partial(torch.optim.SGD, lr=0.0))
    logged = Rows()
    trainer(accumulate_grad_batches=4, logger=logged, log_every_n_steps=1).fit(run, loader(random_pairs(10), 1))
    norms = [row["train/grad_norm"] for _, row in logged.rows]
    expected = []
    for window in ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9]):
        run.zero_grad()
        run._losses(random_pairs(10).select(window))[1].mean().backward()
        expected.append(torch.cat([p.grad.flatten() for p in run.policy.parameters()]).norm().item())
    assert norms == pytest.approx(expected, rel=1e-4)


class Rows(L.pytorch.loggers.logger.DummyLogger):
    """Keeps the logged rows."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))


def test_a_logged_row_covers_the_whole_step_and_clipping_comes_after_the_norm():
    rows, run = Rows(), module()
    pairs = random_pairs(6)
    with torch.no_grad():
        expected = run._losses(pairs)[1].mean().item()
    trainer(accumulate_grad_batches=3, logger=rows, log_every_n_steps=1, gradient_clip_val=1e-3).fit(
        run, loader(pairs, 2)
    )
    ((step, row),) = rows.rows
    assert step == 1 and row["train/loss"] == pytest.approx(expected, rel=1e-6)
    assert row["train/grad_norm"] > 1e-3 and row["train/lr"] == pytest.approx(0.1)


def test_validation_means_count_each_pair_once():
    rows, run = Rows(), module()
    pairs = random_pairs(7)
    trainer(logger=rows).validate(run, loader(pairs, 3), verbose=False)
    ((step, row),) = rows.rows
    logps = run.scorer(pairs).chosen.sum()
    assert step == 0 and row["val/logps/chosen"] == pytest.approx(logps.mean().item(), rel=1e-6)


def test_a_policy_equal_to_its_reference_starts_at_log_2():
    rows = Rows()
    run = DPOModule(llama(), DPO, CopyReference())
    trainer(logger=rows).validate(run, loader(random_pairs(), 4), verbose=False)
    assert rows.rows[0][1]["val/loss"] == pytest.approx(0.693147, abs=1e-6)


def test_dropout_is_off_in_training_and_kept_in_the_configuration():
    run = DPOModule(gpt2(), DPO, CopyReference())
    run.train()
    assert not any(m.training for m in run.policy.modules()) and run.policy.config.resid_pdrop == 0.1


def test_one_batch_can_be_learnt():
    run = module(optimizer=partial(torch.optim.AdamW, lr=1e-2))
    rows = Rows()
    trainer(logger=rows, max_epochs=40, log_every_n_steps=1).fit(run, loader(random_pairs(8), 8))
    first, last = rows.rows[0][1], rows.rows[-1][1]
    assert last["train/loss"] < 0.5 * first["train/loss"] and last["train/rewards/accuracies"] == 1


def test_a_checkpoint_has_no_reference_and_no_pickled_objects(tmp_path):
    run = module()
    fit = trainer()
    fit.fit(run, loader(random_pairs(), 2))
    fit.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert all(key.startswith("policy.") for key in checkpoint["state_dict"])
    loaded = DPOModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    for a, b in zip(run.policy.parameters(), loaded.policy.parameters(), strict=True):
        assert torch.equal(a, b)
    assert loaded.loss.keywords == {"beta": 0.1} and loaded.loss.func is losses.dpo


def test_training_resumes_with_the_reference_that_it_started_from(tmp_path):
    pairs = random_pairs(8)

    def fit(steps, **options):
        run = DPOModule(llama(), DPO, CopyReference(), partial(torch.optim.AdamW, lr=1e-2))
        t = trainer(max_epochs=-1, max_steps=steps)
        t.fit(run, loader(pairs, 8), **options)
        return run, t

    whole, _ = fit(4)
    _, half = fit(2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = fit(4, ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(whole.policy.lm_head.weight, resumed.policy.lm_head.weight)
    assert torch.equal(resumed.reference.model.lm_head.weight, llama().lm_head.weight)


def own_loss(logps, *, beta):
    return losses.dpo(logps, beta=beta)


def test_a_custom_loss_must_be_passed_on_loading(tmp_path):
    t = trainer()
    t.fit(module(loss=partial(own_loss, beta=0.2)), loader(random_pairs(), 6))
    t.save_checkpoint(tmp_path / "own.ckpt")
    with pytest.raises(TypeError, match="loss"):
        DPOModule.load_from_checkpoint(tmp_path / "own.ckpt")
    assert DPOModule.load_from_checkpoint(tmp_path / "own.ckpt", loss=partial(own_loss, beta=0.2)).loss.func is own_loss


def test_a_parameter_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"beta: found -1; allowed: a number in \(0, inf\)"):
        DPOModule(llama(), partial(losses.dpo, beta=-1))


def test_a_reference_based_loss_without_a_reference_is_refused_with_a_remedy():
    with pytest.raises(ReferenceRequired, match="CopyReference"):
        trainer().fit(DPOModule(llama(), DPO), loader(random_pairs(), 2))


def test_a_run_without_an_end_is_refused():
    with pytest.raises(ValueError, match="max_epochs or trainer.max_steps"):
        trainer(max_epochs=-1).fit(module(), loader(random_pairs(), 2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_step_equals_that_on_the_cpu():
    on_cpu, on_gpu = module(), module()
    trainer().fit(on_cpu, loader(random_pairs(8), 8))
    trainer(accelerator="gpu", devices=1).fit(on_gpu, loader(random_pairs(8), 8))
    for a, b in zip(on_cpu.policy.parameters(), on_gpu.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b.cpu(), atol=1e-4, rtol=1e-3)


def test_named_validation_sets_are_logged_separately_and_together(reviews, few_reviews, tmp_path):
    lines = few_reviews.read_text().splitlines(keepends=True)
    for name, part in (("a", lines[:9]), ("b", lines[9:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(part))
    val = {"a": tmp_path / "a.jsonl", "b": [tmp_path / "b.jsonl"]}
    data = PreferenceDataModule(reviews / "model", few_reviews, val, batch_size=8)
    run = DPOModule(reviews / "model", partial(losses.simpo, beta=2.0, gamma=0.5))
    logged = _validated(run, data)
    for metric in ("loss", "logps/chosen", "rewards/accuracies"):
        a, b, both = (logged[f"val/{name}{metric}"] for name in ("a/", "b/", ""))
        assert both == pytest.approx((9 * a + 39 * b) / 48, rel=1e-5), "each pair counts once"


def _validated(run: DPOModule, data) -> dict[str, float]:
    validator = trainer()
    validator.validate(run, data, verbose=False)
    return {name: float(value) for name, value in validator.callback_metrics.items()}


def step_taken(pairs) -> torch.Tensor:
    """The change of the weights by one step of SGD at learning rate 1, which is the gradient."""
    run = module(optimizer=partial(torch.optim.SGD, lr=1.0))
    before = weights(run)
    trainer().fit(run, loader(pairs, len(pairs)))
    return before - weights(run)


def test_pair_weights_multiply_the_losses():
    """The step is the sum of weight x loss over the number of pairs."""
    factors, pairs = [3.0, 0.0, 1.0, 0.5], random_pairs(4)
    expected = sum(w * step_taken(pairs.select([i])) for i, w in enumerate(factors)) / 4
    pairs.weight = torch.tensor(factors, dtype=torch.float64)
    torch.testing.assert_close(step_taken(pairs), expected, atol=1e-6, rtol=1e-4)


def test_twenty_steps_of_packed_rows_follow_those_of_padded_ones():
    """The pairs share prompts and responses, which packed rows compute once."""
    pairs, losses_of, sums = tree_pairs(80), {}, {}
    for scoring in ("padded", "shared_prefix"):
        rows = Rows()
        adam = partial(torch.optim.AdamW, lr=1e-3)
        run = DPOModule(llama(), DPO, CopyReference(), adam, scoring=scoring)
        trainer(logger=rows, log_every_n_steps=1).fit(run, loader(pairs, 4))
        losses_of[scoring] = [float(row["train/loss"]) for _, row in rows.rows]
        sums[scoring] = [float(row["train/logps/chosen"]) for _, row in rows.rows]
    assert len(losses_of["padded"]) == 20 and losses_of["padded"][0] == pytest.approx(0.693147, abs=1e-6)
    assert losses_of["shared_prefix"][0] == pytest.approx(0.693147, abs=1e-6)
    assert losses_of["shared_prefix"] == pytest.approx(losses_of["padded"], abs=1e-4)
    assert sums["shared_prefix"] == pytest.approx(sums["padded"], abs=2e-3)
    assert max(abs(loss - 0.693147) for loss in losses_of["padded"]) > 0.05, "the weights did not move"


@pytest.mark.parametrize("stage", ["fit", "validate"])
@pytest.mark.parametrize(
    ("batch", "found"),
    [({"chosen": torch.ones(1), "rejected": torch.ones(1)}, "a dict with the keys chosen, rejected"),
     ([torch.ones(1)], "a list"), (torch.ones(1), "a Tensor")],
)  # fmt: skip
def test_another_batch_than_a_pair_batch_is_one_line(stage, batch, found):
    of_theirs = DataLoader([0], collate_fn=lambda rows: batch)
    with pytest.raises(DataError, match=f"a batch is {found}; allowed: .*PairBatch") as error:
        getattr(trainer(), stage)(module(), of_theirs)
    assert "\n" not in str(error.value)


class Logs(L.Callback):
    """Logs in the ways that callbacks do."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.learning_rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(self, trainer, pl_module, *args):
        pl_module.log("mine/lr", self.learning_rate)

    def on_train_epoch_end(self, trainer, pl_module):
        pl_module.log("mine/epoch", float(trainer.global_step))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_rows_of_lightnings_callbacks_have_the_number_of_their_step(tmp_path, accumulate, interval):
    """Two epochs of five batches, also from a checkpoint after the first of them and after three steps."""

    def fit(epochs: int, start=None, **options) -> tuple[L.Trainer, dict]:
        rows, monitor = Rows(), LearningRateMonitor(logging_interval=interval)
        settings = dict(max_epochs=epochs, logger=rows, log_every_n_steps=1, accumulate_grad_batches=accumulate)
        run = trainer(callbacks=[monitor, Logs()], **settings, **options)
        decaying = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
        own = DPOModule(llama(), DPO, CopyReference(), SGD, decaying)
        run.fit(own, loader(random_pairs(5), 1), loader(random_pairs(5), 5), ckpt_path=start)
        return run, {name: {step: row[name] for step, row in rows.rows if name in row}
                     for name in ("train/lr", "lr-SGD", "mine/lr", "mine/epoch")}  # fmt: skip

    def agree(found: dict) -> None:
        assert found["lr-SGD"] and found["mine/lr"] == pytest.approx(found["train/lr"])
        assert found["lr-SGD"] == pytest.approx({step: found["train/lr"][step] for step in found["lr-SGD"]})
        assert all(step == value for step, value in found["mine/epoch"].items())

    _, whole = fit(2)
    agree(whole)
    first, _ = fit(1)
    first.save_checkpoint(tmp_path / "first.ckpt")
    _, second = fit(2, tmp_path / "first.ckpt")
    agree(second)
    assert second["train/lr"] == {step: lr for step, lr in whole["train/lr"].items() if step > first.global_step}
