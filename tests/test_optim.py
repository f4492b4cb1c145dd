"""Learning-rate schedules, optimizers from optional packages, and gradient clipping."""

import sys
from functools import partial

import pytest
import torch
from torch.optim import lr_scheduler
from transformers import Adafactor, get_scheduler

from lightning_dpo import CopyReference, DPOModule
from lightning_dpo.errors import ConfigError
from lightning_dpo.optim import adamw_8bit, adamw_stochastic, schedule
from tests.conftest import llama, random_pairs
from tests.test_module import DPO, SGD, Rows, loader, module, trainer, weights


def test_adamw_8bit_has_one_byte_moments_and_steps_like_adamw():
    pytest.importorskip("bitsandbytes", reason="pip install 'lightning-dpo[8bit]'")
    trained = {}
    for make in (adamw_8bit, torch.optim.AdamW):
        run = DPOModule(llama(hidden_size=64, intermediate_size=128), DPO, CopyReference(), partial(make, lr=1e-3))
        before = weights(run)
        fit = trainer(max_epochs=5)
        fit.fit(run, loader(random_pairs(12), 4))
        trained[make] = weights(run) - before
        if make is adamw_8bit:
            states = fit.optimizers[0].state
            large = [state for p, state in states.items() if p.numel() >= 4096]
            assert large and all(state["state1"].dtype == torch.uint8 for state in large)
    in_bytes, in_floats = trained.values()
    assert torch.cosine_similarity(in_bytes, in_floats, dim=0) > 0.95
    assert in_bytes.norm() / in_floats.norm() == pytest.approx(1, abs=0.1)


def test_adamw_stochastic_moves_bfloat16_weights_by_steps_too_small_for_rounding():
    pytest.importorskip("torchao", reason="pip install 'lightning-dpo[stochastic]'")

    def trained(make) -> torch.Tensor:
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.ones(1000, dtype=torch.bfloat16))
        optimizer = make([weight], lr=1e-4, weight_decay=0.0)
        for _ in range(100):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        return weight.detach().float()

    assert torch.equal(trained(torch.optim.AdamW), torch.ones(1000))
    assert trained(adamw_stochastic).mean() == pytest.approx(0.99, abs=1e-3)


@pytest.mark.parametrize(
    ("make", "package", "extra"),
    [(adamw_8bit, "bitsandbytes.optim", "8bit"), (adamw_stochastic, "torchao.optim", "stochastic")],
)
def test_a_missing_package_is_an_error_that_names_what_to_install(monkeypatch, make, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"pip install 'lightning-dpo\[{extra}\]', or type optimizer=adamw"):
        make([torch.nn.Parameter(torch.zeros(1))])


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 7])
def test_a_schedule_equals_that_of_transformers(name, warmup):
    def rates(make) -> list[float]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
        scheduler, found = make(optimizer), []
        for _ in range(55):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    kind = "constant_with_warmup" if name == "constant" else name
    theirs = rates(lambda o: get_scheduler(kind, o, num_warmup_steps=warmup, num_training_steps=50))
    assert rates(lambda o: schedule(o, 50, name, warmup)) == pytest.approx(theirs, abs=1e-12)


def test_bf16_mixed_trains_float32_weights_with_a_fused_optimizer_and_clipping():
    """The step is that of float32 within bf16's rounding, and clipped to the same norm."""
    moved = {}
    for precision in ("32-true", "bf16-mixed"):
        run = module(optimizer=partial(torch.optim.SGD, lr=1.0, fused=True))
        before = weights(run)
        trainer(precision=precision, gradient_clip_val=0.5).fit(run, loader(random_pairs(4), 4))
        moved[precision] = weights(run) - before
        assert moved[precision].dtype == torch.float32
        assert moved[precision].norm().item() == pytest.approx(0.5, rel=1e-3)
    assert torch.cosine_similarity(*moved.values(), dim=0) > 0.999


def rates(scheduler, optimizer=SGD, **options) -> list[float]:
    """The logged learning rates of two epochs of three batches; the loss of the one pair falls."""
    rows = Rows()
    run = DPOModule(llama(), DPO, CopyReference(), optimizer, scheduler)
    trainer(max_epochs=2, logger=rows, log_every_n_steps=1, **options).fit(run, loader(random_pairs(3), 1))
    return [row["train/lr"] for _, row in rows.rows if "train/lr" in row]


def by_torch(make, steps: int = 6) -> list[float]:
    """The learning rates of a schedule that is stepped after each optimizer step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler, found = make(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    "make",
    [
        partial(lr_scheduler.StepLR, step_size=2, gamma=0.5),
        partial(lr_scheduler.ExponentialLR, gamma=0.9),
        partial(lr_scheduler.CosineAnnealingLR, T_max=6),
        partial(lr_scheduler.LambdaLR, lr_lambda=lambda step: 1 / (1 + step)),
        partial(lr_scheduler.OneCycleLR, max_lr=0.2, total_steps=8),
        partial(lr_scheduler.OneCycleLR, max_lr=0.2, epochs=3, steps_per_epoch=4),
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.5)], milestones=[2]
        ),
    ],
)
def test_any_schedule_of_torch_is_stepped_after_each_optimizer_step(make):
    assert rates(make) == pytest.approx(by_torch(make))


def test_the_total_goes_to_an_argument_of_its_name_alone():
    one_cycle = partial(lr_scheduler.OneCycleLR, max_lr=0.2)
    assert rates(one_cycle) == pytest.approx(by_torch(partial(one_cycle, total_steps=6)))
    totals = []

    def own(optimizer, *, total_steps):
        totals.append(total_steps)
        return lr_scheduler.ConstantLR(optimizer)

    rates(own, accumulate_grad_batches=2)
    assert totals == [4]
    with pytest.raises(ConfigError, match=r"missing a required argument: 'n'; a scheduler is called as scheduler\("):
        rates(lambda optimizer, n: lr_scheduler.ConstantLR(optimizer))


def test_a_schedule_may_be_lightnings_dict():
    step = partial(lr_scheduler.StepLR, step_size=1, gamma=0.5)
    assert rates(lambda o: {"scheduler": step(o), "interval": "epoch"}) == pytest.approx([0.1] * 3 + [0.05] * 3)
    assert rates(lambda o: {"scheduler": step(o), "frequency": 3}) == pytest.approx([0.1] * 3 + [0.05] * 3)
    never = partial(lr_scheduler.ReduceLROnPlateau, mode="max", threshold=1e9, patience=0, factor=0.5)
    watching = {"monitor": "train/loss", "interval": "step"}
    found = rates(lambda o: {"scheduler": never(o), **watching})
    assert found == pytest.approx([0.1, 0.1, 0.05, 0.025, 0.0125, 0.00625])
    with pytest.raises(ConfigError, match="ReduceLROnPlateau has no metric to watch"):
        rates(never)


def test_without_a_schedule_the_optimizer_sets_its_learning_rate():
    assert rates(None) == [0.1] * 6
    assert rates(None, Adafactor) == [], "it is chosen per parameter"
    with pytest.raises(ConfigError, match="Adafactor without lr sets its own learning rate"):
        rates(schedule, Adafactor)


@pytest.mark.parametrize("make", [torch.optim.LBFGS, torch.optim.SparseAdam, torch.optim.Muon])
def test_an_optimizer_that_cannot_take_the_step_is_refused_before_it(make):
    with pytest.raises(ValueError, match="several times per step|sparse gradients|only supports 2D"):
        rates(None, make)


@pytest.mark.parametrize("make", [torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.NAdam, torch.optim.Adafactor])
def test_any_other_optimizer_of_torch_lowers_the_loss(make):
    run, rows, pairs = DPOModule(llama(), DPO, CopyReference(), partial(make, lr=1e-3)), Rows(), random_pairs(4)
    trainer(max_epochs=8, logger=rows, log_every_n_steps=1).fit(run, loader(pairs, 4))
    assert rows.rows[-1][1]["train/loss"] < rows.rows[0][1]["train/loss"]
