"""A number that is logged is true, and a step that gave none is not hidden."""

import csv
import json
import logging
from functools import partial
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch.optim import AdamW

from lightning_dpo import CopyReference, DPOModule, losses
from lightning_dpo.callbacks.alarms import CollapseWarning, fell_significantly, share_rounded_away
from lightning_dpo.errors import NonFiniteError
from lightning_dpo.nonfinite import FILE
from lightning_dpo.samples.measures import Completion
from lightning_dpo.scoring import Scorer
from tests.conftest import FAMILIES, llama, random_pairs
from tests.test_module import DPO, Rows, loader, module, perturbed, trainer

ADAM = partial(AdamW, lr=1e-2)


def bad_at(steps: set[int], row: int = 1):
    """DPO whose `row`-th pair has no loss in these calls, counted from 0."""
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
def test_a_steps_row_is_the_same_however_its_pairs_are_cut_up(batch_size, accumulate):
    """3 + 3 + 2 is the uneven one; every name of the row is compared, the gradient's norm included."""
    whole = metrics_of(8, 1)
    assert metrics_of(batch_size, accumulate) == pytest.approx(whole, rel=1e-5, abs=1e-6)
    assert "train/grad_norm" in whole and "train/displacement/chosen_up" in whole


def test_the_file_the_summary_and_the_bar_say_the_same(command, short, tmp_path, monkeypatch):
    from lightning_dpo.callbacks.progress_bar import PairProgressBar

    shown, real = [], PairProgressBar.get_metrics

    def seen(self, run, module):
        shown.append((run.global_step, real(self, run, module)))
        return shown[-1][1]

    monkeypatch.setattr(PairProgressBar, "get_metrics", seen)
    assert command(*short, "logger=csv", "trainer.accumulate_grad_batches=2", "data.batch_size=8")[0] == 0
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    last = {name: float(value) for row in rows for name, value in row.items() if value and name != "step"}
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]
    assert {name: summary[name] for name in last} == pytest.approx(last, rel=1e-6)
    step, bar = next((s, m) for s, m in reversed(shown) if "loss" in m)
    at = next(row for row in rows if row["train/loss"] and int(row["step"]) == step)
    assert (
        bar["loss"] == f"{float(at['train/loss']):.3f}" and bar["margin"] == f"{float(at['train/rewards/margins']):.3f}"
    )


def test_a_loss_that_is_no_number_stops_the_run_and_its_row_is_written_down(tmp_path):
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
    assert not (tmp_path / "after.ckpt").exists(), "no checkpoint after it"


def test_a_gradient_that_is_no_number_stops_the_run_with_all_its_rows(tmp_path):
    run = module(optimizer=ADAM)
    run.policy.lm_head.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteError, match="step 1: the gradient is not finite"):
        trainer(default_root_dir=tmp_path, accumulate_grad_batches=2).fit(run, loader(random_pairs(4), 2))
    assert len((tmp_path / FILE).read_text().splitlines()) == 4, "both micro-batches"


@pytest.mark.parametrize("every", [1, 4])
def test_a_look_at_the_steps_may_wait_and_no_checkpoint_comes_before_it(tmp_path, every):
    """The device is waited for where metrics are written, every `log_every_n_steps`, and before a checkpoint."""
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


def weights(run) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.policy.parameters()])


def test_skipping_leaves_the_weights_and_the_moments_as_they_were(tmp_path, caplog):
    """Steps 1 and 3 of three are skipped: what is left is the one good step from a fresh optimizer."""
    pairs = random_pairs(2)
    run = perturbed(DPOModule(llama(), bad_at({0, 2}), CopyReference(), ADAM, nonfinite="skip"))
    with caplog.at_level(logging.WARNING):
        trainer(default_root_dir=tmp_path, max_epochs=3).fit(run, loader(pairs, 2))
    once = module(DPO, ADAM)
    trainer().fit(once, loader(pairs, 2))
    assert torch.equal(weights(run), weights(once))
    assert [json.loads(line)["step"] for line in (tmp_path / FILE).read_text().splitlines()] == [1, 3]
    assert sum("step left out" in record.getMessage() for record in caplog.records) == 2


def test_skipping_leaves_what_a_loss_remembers_as_it_was(tmp_path):
    """One gradient of three is no number, though the loss is: bco_pair's shift is that of the other two steps."""
    pairs, seen = random_pairs(2), []

    def after(steps: int, broken: int | None, **options):
        run = perturbed(DPOModule(llama(), losses.BCOPair(beta=0.1), CopyReference(), ADAM, **options))
        if broken is not None:
            run.policy.lm_head.weight.register_hook(lambda g: g * (float("nan") if run.global_step == broken else 1))
        trainer(default_root_dir=tmp_path, max_epochs=steps).fit(run, loader(pairs, 2))
        seen.append(weights(run))
        return run.loss.delta

    skipped, plain = after(3, 2, nonfinite="skip"), after(2, None)
    assert torch.equal(*seen) and skipped.mean == plain.mean != 0 and skipped.count == plain.count == 2


def test_weights_that_are_no_numbers_are_never_saved(tmp_path):
    run = module()
    fit = trainer()
    fit.fit(run, loader(random_pairs(2), 2))
    with torch.no_grad():
        run.policy.lm_head.weight[0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match=r"weights .*lm_head"):
        fit.save_checkpoint(tmp_path / "inf.ckpt")


def test_the_command_ends_with_code_1_one_line_and_no_checkpoint_or_model(command, short, tmp_path):
    code, said = command(*short, "logger=csv", "optimizer.lr=1e30", "samples.n=0", "trainer.gradient_clip_val=null")
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 1 and "not finite" in line and "optimizer.lr" in line and "Traceback" not in said, said
    assert not (tmp_path / "run" / "model").exists() and not list((tmp_path / "run").glob("checkpoints/*.ckpt"))


# Collapse


def validated(callback: CollapseWarning, series: list[tuple[float, float, list[float]]]) -> None:
    """The callback after validations with this KL, accuracy and rewards of the samples."""
    for step, (kl, accuracy, rewards) in enumerate(series):
        callback.samples.last = [Completion("p", "t", 1, 0.0, 0.0, {"reward": r}) for r in rewards]
        metrics = {"val/kl": torch.tensor(kl), "val/rewards/accuracies": torch.tensor(accuracy)}
        run = SimpleNamespace(callback_metrics=metrics, global_step=step, is_global_zero=True, loggers=[])
        callback.on_validation_end(run, None)  # type: ignore[arg-type]


HIGH, LOW = [5.0, 6.0, 7.0, 6.0] * 8, [4.0, 5.0, 6.0, 5.0] * 8


@pytest.mark.parametrize(
    ("series", "words"),
    [
        ([(1, 0.5, HIGH), (120, 0.5, HIGH), (130, 0.5, HIGH)], ["KL 120.0 nats", "warn_kl=100"]),  # once
        ([(1, 0.5, HIGH), (99, 0.9, HIGH)], []),
        (
            [(1, 0.5, HIGH), (2, 0.9, LOW), (2, 0.9, LOW)],
            ["accuracy rose from 0.500 to 0.900", "reward fell from 6 to 5"],
        ),
        ([(1, 0.5, HIGH), (2, 0.4, LOW)], []),  # worse by both: no disagreement
        ([(0, 0.0, HIGH), (2, 0.4, LOW)], []),  # at the start all were ties: 0.4 is worse than a coin
        ([(0, 0.0, HIGH), (2, 0.9, LOW)], ["accuracy rose from 0.500 to 0.900"]),
        ([(1, 0.5, LOW), (2, 0.9, HIGH)], []),
        ([(1, 0.5, [1.0, 9.0]), (2, 0.9, [0.9, 8.9])], []),  # within the noise of two completions
    ],
)
def test_it_warns_far_from_the_reference_and_where_the_scorer_disagrees(series, words, caplog):
    callback = CollapseWarning(SimpleNamespace(last=[]), 100.0)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        validated(callback, series)
    assert len(caplog.records) == bool(words) and all(word in caplog.text for word in words)


def test_a_continued_run_remembers_its_start(caplog):
    first = CollapseWarning(SimpleNamespace(last=[]), 100.0)  # type: ignore[arg-type]
    validated(first, [(1, 0.5, HIGH)])
    second = CollapseWarning(SimpleNamespace(last=[]), 100.0)  # type: ignore[arg-type]
    second.load_state_dict(first.state_dict())
    validated(second, [(2, 0.9, LOW)])
    assert "reward fell" in caplog.text


def test_a_fall_counts_beyond_twice_its_standard_error():
    assert fell_significantly(HIGH, LOW) and not fell_significantly(LOW, HIGH) and not fell_significantly([1.0], [0.0])
    assert not fell_significantly([0.0, 2.0], [-0.5, 1.5])


# bfloat16


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", ["shared_prefix", "padded"])
def test_log_probabilities_of_a_bfloat16_model_are_summed_in_float32(family, layout):
    """A response's sum is within 1 % of the same weights' in float32, and it is the sum of its own tokens exactly."""
    half, pairs = FAMILIES[family]().bfloat16(), random_pairs(12)
    full = FAMILIES[family]()
    full.load_state_dict(half.state_dict())
    rounded, exact = Scorer(half, layout)(pairs), Scorer(full, layout)(pairs)
    for side in ("chosen", "rejected"):
        values = getattr(rounded, side)
        assert values.values.dtype == torch.float32
        torch.testing.assert_close(values.sum(), getattr(exact, side).sum(), rtol=0.01, atol=0)


def test_the_share_of_weights_that_a_step_leaves_unchanged_is_counted():
    """bfloat16 has 8 bits: near 1 the next weight is 2^-7 above and 2^-8 below, and half of that is lost."""
    weight = torch.ones(10, dtype=torch.bfloat16)
    assert share_rounded_away([weight], 1e-3) == 1 and share_rounded_away([weight], 2.0**-8) == 0
    assert share_rounded_away([torch.tensor([1.0, 1e-4], dtype=torch.bfloat16)], 1e-4) == 0.5
    assert share_rounded_away([torch.ones(10)], 1e-9) == 0, "float32 weights are another matter"


def test_pure_bfloat16_with_a_small_learning_rate_is_warned_about(command, short):
    pure = ["model.dtype=bfloat16", "trainer.precision=bf16-true", "optimizer.lr=1e-6", "samples.n=0", "logger=csv"]
    code, said = command(*short, *pure, "trainer.max_steps=1")
    assert code == 0 and "rounds to nothing for" in said and "trainer.precision=bf16-mixed" in said, said


def test_the_remedy_trains_float32_weights_with_the_fused_optimizer_and_clipping(tmp_path):
    """bf16-mixed: the step is that of float32 within bf16's rounding, and clipped to the same norm."""
    moved = {}
    for precision in ("32-true", "bf16-mixed"):
        run = module(optimizer=partial(torch.optim.SGD, lr=1.0, fused=True))
        before = weights(run)
        trainer(precision=precision, gradient_clip_val=0.5).fit(run, loader(random_pairs(4), 4))
        moved[precision] = weights(run) - before
        assert moved[precision].dtype == torch.float32 and moved[precision].norm().item() == pytest.approx(
            0.5, rel=1e-3
        )
    assert torch.cosine_similarity(*moved.values(), dim=0) > 0.999
