"""The same command resumes, however it was typed, and recognises the run that a folder holds."""

import json
import random
import shlex
import shutil
import sys

import pytest
import torch
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser

from lightning_dpo.run import checkpoint
from lightning_dpo.run.checkpoint import AtomicCheckpointIO, Damaged
from lightning_dpo.sweep import overrides
from tests.run.test_resume_kills import Runs, ended, printed, result


@pytest.fixture
def start(tmp_path) -> Runs:
    return Runs(tmp_path)


@pytest.mark.parametrize(
    "typed",
    ["-m beta=0.1,0.2", "beta=0.1,0.2 seed=1 -m", "beta=0.1 --config-dir c", "--config-dir c beta=0.1 -m", "-m", "",
     "'data.train=[{path: a b.jsonl, weight: 2}]' --config-name x"],
)  # fmt: skip
def test_the_printed_command_parses_as_the_typed_one_plus_one_override(typed, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", *shlex.split(typed)])
    _, _, module, *arguments = shlex.split(overrides.typed_line("sweep_name=s"))
    assert module == "lightning_dpo.train"
    before, now = (vars(get_args_parser().parse_args(a)) for a in (shlex.split(typed), arguments))
    assert now.pop("overrides") == [*before.pop("overrides"), "sweep_name=s"] and now == before


@pytest.mark.parametrize("folder", ["out/a-1", "my runs/a=b, c", "it's", "back\\", "back\\'s", "ünï [x]", "a: {b}"])
def test_hydra_parses_any_quoted_folder(folder):
    override = OverridesParser.create().parse_override(f"output_dir={overrides.quoted(folder)}")
    assert override.value() == folder or str(override.value()) == folder


def test_a_run_from_a_checkpoint_of_another_folder_resumes_with_the_same_command(start):
    origin, process = start("origin", "trainer.max_steps=3")
    assert ended(process) == 0, printed(origin)
    options = [f"resume={origin}/checkpoints/last.ckpt", "resume_override=true", "trainer.max_steps=7"]
    folders = []
    for name, kills in (("whole", 0), ("killed", 2)):
        for _ in range(kills):
            folder, process = start(name, *options, dies=True)
            assert ended(process) < 0, printed(folder)
        folder, process = start(name, *options)
        assert ended(process) == 0, printed(folder)
        folders.append(folder)
    assert result(folders[0]) == result(folders[1])
    folder, process = start("whole", *options)
    assert ended(process) == 0 and "nothing is left to do" in printed(folder)


def test_a_finished_run_is_compared_even_without_its_checkpoints(command, short, tmp_path):
    line = [*short, "trainer.max_steps=1", "samples.n=0", "logger=csv"]
    assert command(*line)[0] == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    code, output = command(*line, "beta=0.9")
    assert code == 2 and "holds another run (beta 0.1 -> 0.9" in output


def test_a_temporarily_missing_file_does_not_rerun_a_finished_job(command, short, few_reviews, tmp_path):
    short = [o for o in short if not o.startswith(("output_dir=", "data.val="))]
    line = ["-m", "seed=1", "sweep_name=s", "trainer.max_steps=1", "samples.n=0", "data.val=null", "logger=csv", *short]
    assert command(*line)[0] == 0
    (summary,) = (tmp_path / "outputs" / "sweeps" / "s").glob("*/summary.json")
    before = summary.read_bytes()
    away = few_reviews.rename(tmp_path / "away.jsonl")
    assert "] skipped" in command(*line)[1]
    away.rename(few_reviews)
    assert "] skipped" in command(*line)[1] and summary.read_bytes() == before


def test_nonfinite_rows_after_the_checkpoint_are_written_once(start):
    """With this learning rate all steps but the first are skipped. Killed after each checkpoint."""
    options = ["optimizer.lr=1e30", "scheduler=constant", "scheduler.warmup_steps=0", "nonfinite=skip", "data.val=null"]
    options += ["trainer.max_epochs=1"]
    whole, process = start("whole", *options)
    code = ended(process)
    lines = (whole / "nonfinite.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert len(set(steps)) > 1, printed(whole)
    for _ in range(3):
        folder, process = start("killed", *options, dies=True)
        ended(process)
    folder, process = start("killed", *options)
    assert ended(process) == code
    assert (folder / "nonfinite.jsonl").read_text().splitlines() == lines


def test_a_flipped_bit_of_a_checkpoint_is_detected_or_harmless(tmp_path):
    path, weight = tmp_path / "last.ckpt", torch.randn(50)
    AtomicCheckpointIO().save_checkpoint({"run": None, "state_dict": {"w": weight}, "text": "plain"}, path)
    whole, draws = path.read_bytes(), random.Random(0)
    detected = 0
    for _ in range(400):
        altered = bytearray(whole)
        altered[draws.randrange(len(whole))] ^= 1 << draws.randrange(8)
        path.write_bytes(altered)
        try:
            assert torch.equal(checkpoint.read(path)["state_dict"]["w"], weight)
        except Damaged:
            detected += 1
    assert detected > 200
