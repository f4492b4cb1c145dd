"""Every part that a configuration names can come from a package of one's own, without a change here."""

import csv
import json

import pytest

from lightning_dpo.safety import targets

OWN = """
import lightning as L
import torch
from dataclasses import dataclass
from lightning.pytorch.loggers import Logger
from torch.optim.lr_scheduler import LambdaLR
from lightning_dpo.losses import dpo

class Signs(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad.sign(), alpha=group["lr"])
        return loss

def halved(optimizer, total_steps, floor):
    return LambdaLR(optimizer, lambda step: floor if 2 * step >= total_steps else 1.0)

def watched(optimizer):
    return {"scheduler": LambdaLR(optimizer, lambda epoch: 0.5**epoch), "interval": "epoch"}

def loss(logps, *, beta):
    result = dpo(logps, beta=beta)
    return type(result)(2 * result.loss, result.chosen_reward, result.rejected_reward, result.margin)

def length(texts):
    return [float(len(text)) for text in texts]

@dataclass
class Norms(L.Callback):
    power: int
    def on_before_zero_grad(self, trainer, module, optimizer):
        module.log("mine/weights", sum(float(p.norm(self.power)) for p in module.policy.parameters()))

class File(Logger):
    name, version = "mine", 0
    def __init__(self, save_dir):
        super().__init__()
        self.path = save_dir + "/mine.txt"
    def log_hyperparams(self, params, *args, **kwargs):
        pass
    def log_metrics(self, metrics, step=None):
        with open(self.path, "a") as file:
            file.write(f"{step} {sorted(metrics)}\\n")
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The options that name every part of the package `own_package`."""
    (tmp_path / "own_package.py").write_text(OWN)
    (tmp_path / "conf" / "loss").mkdir(parents=True)
    (tmp_path / "conf" / "loss" / "mine.yaml").write_text(
        "# @package _global_\nbeta: 0.2\nloss: {_target_: own_package.loss, _partial_: true, beta: '${beta}'}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(targets.ALLOW, "own_package")
    return [
        "--config-dir", str(tmp_path / "conf"), "loss=mine", "optimizer=custom", "optimizer._target_=own_package.Signs",
        "optimizer.lr=1e-3", "scheduler=custom", "scheduler._target_=own_package.halved", "+scheduler.floor=0.25",
        "samples.scorer=own_package.length", "+callbacks.norms={_target_: own_package.Norms, power: 2}",
        "logger=csv", "+logger.mine={_target_: own_package.File, save_dir: '${output_dir}'}",
    ]  # fmt: skip


def test_a_run_of_parts_of_ones_own(command, short, own, tmp_path):
    """Six steps: the learning rate falls to a quarter after the third."""
    code, output = command(*own, *short, "trainer.max_epochs=2")
    assert code == 0, output
    assert "Signs lr 0.001, scheduler halved" in output
    folder = tmp_path / "run"
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(r["train/lr"]) for r in rows if r["train/lr"]] == pytest.approx([1e-3] * 3 + [2.5e-4] * 3)
    assert float(rows[0]["val/loss"]) == pytest.approx(2 * 0.693147, abs=1e-5)
    first = json.loads((folder / "samples.jsonl").read_text().splitlines()[0])
    assert float(rows[0]["val/samples/reward"]) > 0 and first
    assert any(row.get("mine/weights") for row in rows)
    logged = (folder / "mine.txt").read_text()
    assert "train/loss" in logged and "val/loss" in logged and "mine/weights" in logged


def test_a_scheduler_function_may_return_lightnings_dict(command, short, own, tmp_path):
    options = [o for o in own if not o.startswith(("scheduler", "+scheduler"))]
    step = ["scheduler=custom", "scheduler._target_=own_package.watched"]
    code, output = command(*options, *step, *short, "trainer.max_epochs=2", "samples.n=0")
    assert code == 0, output
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        found = [float(r["train/lr"]) for r in csv.DictReader(file) if r["train/lr"]]
    assert found == pytest.approx([1e-3] * 3 + [5e-4] * 3)
