"""The benchmark: all contenders compute the same step, and it prints what it writes."""

import json
import subprocess
import sys

import pytest
import torch

from lightning_dpo.benchmark import contender, contenders, measure, work
from lightning_dpo.benchmark.run import run, table

SHAPE = work.LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=2)  # fmt: skip


@pytest.fixture(autouse=True)
def shape(monkeypatch):
    monkeypatch.setitem(work.SHAPES, "test", SHAPE)
    monkeypatch.setattr(contender, "LR", 1e-3)


def build():
    return work.build("test", torch.float32, "cpu")


def drawn(number=3, pairs=4):
    return work.batches("hh", "test", build(), number, pairs)


@pytest.mark.parametrize("name", [*contenders.CONTENDERS, "shared+checkpointing"])
def test_every_contender_takes_the_same_steps(name):
    """Losses and weights agree over three updates; otherwise a faster one could just do less."""
    if name.startswith("trl"):
        pytest.importorskip("trl", reason="pip install 'lightning-dpo[bench]'")
    batches = drawn()
    ours, base = contenders.make(name, build), contenders.make("base", build)
    for each in (ours, base):
        each.prepare(batches)
    for batch in batches:
        torch.testing.assert_close(ours.step(batch), base.step(batch), rtol=1e-4, atol=1e-5)
    for a, b in zip(ours.model.parameters(), base.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=3e-4)


def test_steps_are_taken_in_turn():
    order = []

    class Recorder:
        def __init__(self, name):
            self.name = name

        def step(self, batch):
            order.append((self.name, batch))

    measure.in_turn({"a": Recorder("a"), "b": Recorder("b")}, [1, 2], "cpu", lambda: None)  # type: ignore[dict-item,list-item]
    assert order == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]


def test_the_lengths_of_hh_have_its_quantiles():
    lengths = torch.cat([b.prompt.lengths for b in drawn(100, 20)]).double()
    assert 85 < lengths.median() < 112 and 240 < lengths.quantile(0.9) < 320
    assert {int(n) for b in work.batches("long-prompt", "test", build(), 2, 2) for n in b.prompt.lengths} == {512}


def test_needed_flops_count_each_token_once():
    """Compared with PyTorch's count of forward and backward over one packed row."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model, (batch,) = build(), drawn(1)
    scorer = contenders.Scorer(model, "shared_prefix", chunk_logits=10**9)
    scorer.prepare()
    with (
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
    ):  # the CPU's kernel is not counted
        logps = scorer(batch)
        (logps.chosen.values.sum() - logps.rejected.values.sum()).backward()
    # PyTorch also counts the head's recomputation, and attention above the diagonal.
    assert 0.5 < work.needed_flops(model, batch) / counter.get_total_flops() < 1.0


def test_a_run_prints_what_it_writes(tmp_path, capsys):
    result = run(["padded", "shared"], "mini", "hh", pairs=2, batches=2, dtype="float32", threads=1, out=tmp_path)
    written = json.loads((tmp_path / "benchmark.json").read_text())
    assert written == result and table(written) in capsys.readouterr().out
    assert (tmp_path / "benchmark.png").stat().st_size > 5000
    shared = written["contenders"]["shared"]
    assert shared["speed_up"]["of_totals"] > 0 and len(shared["step_s"]["all"]) == 2
    assert shared["peak_bytes"] > 0 and written["contenders"]["padded"]["speed_up"]["of_totals"] == 1.0


def test_without_trl_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(contenders, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"trl needs TRL; type pip install 'lightning-dpo\[bench\]'"):
        contenders.make("trl", build)


def test_errors_list_the_allowed_names(tmp_path):
    with pytest.raises(ValueError, match="unknown contender 'packed'; allowed: .*shared"):
        contenders.make("packed", build)
    with pytest.raises(ValueError, match="unknown option 'fast'; allowed: autocast"):
        contenders.make("shared+fast", build)
    with pytest.raises(ValueError, match="neither a file nor one of hh, "):
        work.batches("hh-like", "test", build(), 1, 1)
    with pytest.raises(ValueError, match="has none; type --model FOLDER"):
        (tmp_path / "x.jsonl").write_text("{}")
        work.batches(str(tmp_path / "x.jsonl"), "test", build(), 1, 1)


def test_it_needs_neither_hydra_nor_datasets_nor_wandb():
    """It runs on an image with only torch, transformers and lightning."""
    code = """
import sys
for name in ("hydra", "omegaconf", "datasets", "wandb", "peft"):
    sys.modules[name] = None
from lightning_dpo.benchmark import run, contenders, work
import torch
torch.set_num_threads(1)
model = work.build("mini", torch.float32, "cpu")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
