"""Logged numbers are exact, and a step that is NaN or infinite stops the run or is skipped."""

import csv
import json
import logging
from functools import partial

import lightning as L
import pytest
import torch
from torch.optim import AdamW

from lightning_dpo import CopyReference, DPOModule, losses
from lightning_dpo.errors import NonFiniteError
from lightning_dpo.nonfinite import FILE
from tests.conftest import llama, random_pairs
from tests.test_module import DPO, Rows, loader, module, perturbed, trainer, weights

ADAM = partial(AdamW, lr=1e-2)


def bad_at(steps: set[int], row: int = 1):
    """DPO with a loss of NaN for pair `row` in these calls, counted from 0."""
    calls = iter(range(10**6))

    def loss(logps, *, beta):
        result = losses.dpo(logps, beta=beta)
        if torch.is_grad_enabled() and next(calls) in steps:
            mask = torch.zeros_like(result.loss)
            mask[row] = float("nan")
            result = losses.PairLoss(result.loss + mask, result.chosen_reward, result.rejected_reward, result.margin)
        return result

    return partial(loss, beta=0.1)


def metrics_of(batch_size: int, accumulate: int) -> dict[str, float]:
    rows = Rows()
    run = trainer(logger=rows, log_every_n_steps=1, accumulate_grad_batches=accumulate)
    run.fit(module(), loader(random_pairs(8), batch_size))
    ((_, row),) = rows.rows
    return {name: float(value) for name, value in row.items()}


@pytest.mark.parametrize(("batch_size", "accumulate"), [(4, 2), (2, 4), (3, 3)])
def test_the_metrics_of_a_step_do_not_depend_on_its_micro_batches(batch_size, accumulate):
    """(3, 3) are micro-batches of 3, 3 and 2 pairs. All metrics are compared, the gradient's norm included."""
    whole = metrics_of(8, 1)
    assert metrics_of(batch_size, accumulate) == pytest.approx(whole, rel=1e-5, abs=1e-6)
    assert "train/grad_norm" in whole and "train/displacement/chosen_up" in whole


def test_metrics_csv_summary_and_progress_bar_agree(command, short, tmp_path, monkeypatch):
    from lightning_dpo.callbacks.progress_bar import PairProgressBar

    shown, get_metrics = [], PairProgressBar.get_metrics

    def recorded(self, run, module):
        shown.append((run.global_step, get_metrics(self, run, module)))
        return shown[-1][1]

    monkeypatch.setattr(PairProgressBar, "get_metrics", recorded)
    assert command(*short, "logger=csv", "trainer.accumulate_grad_batches=2", "data.batch_size=8")[0] == 0
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    last = {name: float(value) for row in rows for name, value in row.items() if value and name != "step"}
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]
    assert {name: summary[name] for name in last} == pytest.approx(last, rel=1e-6)
    step, bar = next((s, m) for s, m in reversed(shown) if "loss" in m)
    row = next(row for row in rows if row["train/loss"] and int(row["step"]) == step)
    assert bar["loss"] == f"{float(row['train/loss']):.3f}"
    assert bar["margin"] == f"{float(row['train/rewards/margins']):.3f}"


def test_a_loss_of_nan_stops_the_run_and_its_row_is_written(tmp_path):
    run = module(bad_at({2}), ADAM)
    fit = trainer(default_root_dir=tmp_path, max_epochs=5)
    with pytest.raises(NonFiniteError, match=r"step 3: the loss is not finite \(loss nan, log-probabilities -"):
        fit.fit(run, loader(random_pairs(2), 2))
    (row,) = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    pairs = random_pairs(2)
    assert (row["step"], row["row"]) == (3, 1) and row["tokens_chosen"] == int(pairs.chosen.lengths[1])
    assert row["loss"] != row["loss"] and row["logp_chosen"] < 0 and row["ref_logp_rejected"] < 0
    with pytest.raises(NonFiniteError):
        fit.save_checkpoint(tmp_path / "after.ckpt")
    assert not (tmp_path / "after.ckpt").exists(), "no checkpoint after a bad step"


def test_an_infinite_gradient_stops_the_run_and_all_rows_of_the_step_are_written(tmp_path):
    run = module(optimizer=ADAM)
    run.policy.lm_head.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteError, match="step 1: the gradient is not finite"):
        trainer(default_root_dir=tmp_path, accumulate_grad_batches=2).fit(run, loader(random_pairs(4), 2))
    assert len((tmp_path / FILE).read_text().splitlines()) == 4, "both micro-batches"


@pytest.mark.parametrize("every", [1, 4])
def test_steps_are_checked_when_metrics_are_written_and_before_a_checkpoint(tmp_path, every):
    """Metrics are written every `log_every_n_steps`; a bad step before that may go unnoticed until then."""
    run = module(bad_at({0}), ADAM)
    saved = []

    class Saver(L.Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.save_checkpoint(tmp_path / "early.ckpt")
            saved.append(trainer.global_step)

    callbacks = [] if every == 4 else [Saver()]
    with pytest.raises(NonFiniteError, match="step 1"):
        trainer(default_root_dir=tmp_path, log_every_n_steps=every, max_epochs=9, callbacks=callbacks).fit(
            run, loader(random_pairs(2), 2)
        )
    assert run.trainer.global_step == every - 1 and not saved and not (tmp_path / "early.ckpt").exists()


def test_a_skipped_step_leaves_weights_and_moments_unchanged(tmp_path, caplog):
    """Steps 1 and 3 of three are skipped, so the result is that of one step from a fresh optimizer."""
    pairs = random_pairs(2)
    run = perturbed(DPOModule(llama(), bad_at({0, 2}), CopyReference(), ADAM, nonfinite="skip"))
    with caplog.at_level(logging.WARNING):
        trainer(default_root_dir=tmp_path, max_epochs=3).fit(run, loader(pairs, 2))
    once = module(DPO, ADAM)
    trainer().fit(once, loader(pairs, 2))
    assert torch.equal(weights(run), weights(once))
    assert [json.loads(line)["step"] for line in (tmp_path / FILE).read_text().splitlines()] == [1, 3]
    assert sum("step skipped" in record.getMessage() for record in caplog.records) == 2


def test_a_skipped_step_leaves_the_memory_of_a_loss_unchanged(tmp_path):
    """The last of three gradients is NaN, its loss is finite: bco_pair's shift is that of the other two steps."""
    pairs, trained = random_pairs(2), []

    def shift_after(steps: int, broken: int | None, **options):
        run = perturbed(DPOModule(llama(), losses.BCOPair(beta=0.1), CopyReference(), ADAM, **options))
        if broken is not None:
            run.policy.lm_head.weight.register_hook(lambda g: g * (float("nan") if run.global_step == broken else 1))
        trainer(default_root_dir=tmp_path, max_epochs=steps).fit(run, loader(pairs, 2))
        trained.append(weights(run))
        return run.loss.delta

    skipped, plain = shift_after(3, 2, nonfinite="skip"), shift_after(2, None)
    assert torch.equal(*trained) and skipped.mean == plain.mean != 0 and skipped.count == plain.count == 2


def test_infinite_weights_are_never_saved(tmp_path):
    run = module()
    fit = trainer()
    fit.fit(run, loader(random_pairs(2), 2))
    with torch.no_grad():
        run.policy.lm_head.weight[0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match=r"weights .*lm_head"):
        fit.save_checkpoint(tmp_path / "inf.ckpt")


def test_the_command_ends_with_code_1_one_line_and_no_checkpoint_or_model(command, short, tmp_path):
    code, output = command(*short, "logger=csv", "optimizer.lr=1e30", "samples.n=0", "trainer.gradient_clip_val=null")
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert code == 1 and "not finite" in line and "optimizer.lr" in line and "Traceback" not in output, output
    assert not (tmp_path / "run" / "model").exists() and not list((tmp_path / "run").glob("checkpoints/*.ckpt"))
