"""checkpoint.best: the weights of the best validation are kept and exported, also by a run that is resumed."""

import csv
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from lightning_dpo.callbacks.best import Best
from lightning_dpo.demo import ASSETS
from lightning_dpo.run import checkpoint

OPTIONS = ["logger=csv", "samples.n=0", "scheduler=constant", "optimizer.lr=2e-2", "trainer.val_check_interval=1"]
"""A learning rate that ruins the model within a few steps, and a validation after each."""
EARLY = "lightning.pytorch.callbacks.EarlyStopping"
BEST = [*OPTIONS, "checkpoint.best=val/loss", "checkpoint.every_n_steps=1", "trainer.max_epochs=2"]


def losses(folder) -> dict[int, float]:
    with open(folder / "metrics.csv", newline="") as file:
        return {int(r["step"]): float(r["val/loss"]) for r in csv.DictReader(file) if r["val/loss"]}


def policy(path) -> dict[str, torch.Tensor]:
    weights = checkpoint.read(path)["state_dict"]
    return {name.removeprefix("policy."): value for name, value in weights.items()}


def test_the_best_validation_is_exported_also_after_a_resume(command, short, tmp_path):
    code, output = command(*short, *BEST)
    assert code == 0, output
    run = tmp_path / "run"
    found = losses(run)
    best = min(found, key=found.__getitem__)
    assert best < max(found), "the last weights are not the best here"
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["best"]["step"], summary["best"]["metrics"]["val/loss"]) == (best, found[best])
    assert f"model/ has the weights of step {best}, the best val/loss" in output
    exported = load_file(run / "model" / "model.safetensors")
    kept, last = policy(run / "checkpoints" / f"best-{best}.ckpt"), policy(run / "checkpoints" / "last.ckpt")
    assert all(torch.equal(value, kept[name]) for name, value in exported.items())
    assert any(not torch.equal(value, last[name]) for name, value in exported.items())

    parts = [o if not o.startswith("output_dir") else f"output_dir={tmp_path}/parts" for o in short]
    assert command(*parts, *BEST, "trainer.max_steps=4")[0] == 0
    code, output = command(*parts, *BEST, "resume_override=true")
    assert code == 0, output
    resumed = json.loads((tmp_path / "parts" / "summary.json").read_text())
    assert resumed["best"] == summary["best"]
    again = load_file(tmp_path / "parts" / "model" / "model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in exported.items())


def test_it_works_with_early_stopping(command, short, tmp_path):
    stop = f"+callbacks.stop={{_target_: {EARLY}, monitor: val/loss, divergence_threshold: 1.0}}"
    code, output = command(*short, *BEST, stop)
    assert code == 0, output
    found = losses(tmp_path / "run")
    assert max(found) < 6, "it stopped early"
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["best"]["step"] == min(found, key=found.get)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["checkpoint.best=val/acuracies"], "checkpoint.best=val/acuracies: this run does not measure it"),
        (
            [f"+callbacks.stop={{_target_: {EARLY}, monitor: val/los}}"],
            "callbacks.stop.monitor=val/los: this run does not measure it; allowed: ",
        ),
        (["checkpoint.best=train/loss"], "begin with val/"),
        (
            [f"+callbacks.stop={{_target_: {EARLY}, monitor: val_loss}}"],
            "stop.monitor=val_loss: names of met",
        ),
        (["checkpoint.best=val/loss", "data.val=null"], "nothing is validated"),
        (["checkpoint.mode=least"], "checkpoint.mode=least: found the text 'least'; allowed: auto or min or max"),
        (["export.dtype=int8"], "export.dtype=int8: found the text 'int8'; allowed: float32 or bfloat16"),
    ],
)
def test_a_metric_that_is_not_measured_ends_the_run_after_the_first_validation(command, short, options, message):
    code, output = command(*short, *OPTIONS, *options)
    assert code == 2 and message in output and "training" not in output


@pytest.mark.parametrize(
    ("name", "mode"),
    [("val/loss", "min"), ("val/aux_loss", "min"), ("val/kl", "min"), ("val/loss_margin", "max"), ("val/x", "max")],
)
def test_less_of_a_loss_or_a_kl_is_better(tmp_path, name, mode):
    assert Best(tmp_path, name).mode == mode


def test_the_weights_that_the_last_two_checkpoints_refer_to_are_kept(tmp_path):
    """Also after a resume: the checkpoint before may have to replace a damaged one."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    best = Best(tmp_path, "val/loss")

    def save(best: Best, step: int) -> set[str]:
        best.step = step
        best.path.touch()
        best.on_save_checkpoint(None, None, {})  # type: ignore[arg-type]
        return {path.name for path in folder.iterdir()}

    save(best, 0)
    assert save(best, 10) == {"best-0.ckpt", "best-10.ckpt"}
    resumed = Best(tmp_path, "val/loss")
    resumed.load_state_dict(best.state_dict())
    assert save(resumed, 20) == {"best-10.ckpt", "best-20.ckpt"}


def test_the_export_has_the_dtype_that_the_model_came_in_or_the_one_asked_for(command, short, tmp_path):
    from lightning_dpo.models import load_model

    half = load_model(str(ASSETS / "model"), dtype="bfloat16")
    half.save_pretrained(tmp_path / "half")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "half" / name).write_bytes((ASSETS / "model" / name).read_bytes())
    for asked, dtype in (("null", torch.bfloat16), ("float16", torch.float16)):
        run = tmp_path / asked
        options = [o for o in short if not o.startswith("output_dir")]
        options += ["logger=csv", "samples.n=0", "trainer.max_steps=1", f"output_dir={run}", f"export.dtype={asked}"]
        code, output = command(*options, "model=hf", f"model.path={tmp_path}/half")
        assert code == 0, output
        trained = policy(run / "checkpoints" / "last.ckpt")
        for key, value in load_file(run / "model" / "model.safetensors").items():
            assert value.dtype == dtype and torch.equal(value, trained[key].to(dtype))
        assert trained["lm_head.weight"].dtype == torch.float32, "trained in float32"
        assert AutoConfig.from_pretrained(run / "model").dtype == dtype
        assert f"- weights: {str(dtype).removeprefix('torch.')}" in (run / "model" / "README.md").read_text()
