"""A run and a sweep saved by version 0.1.0 resume with the same command (tests/golden/make_saved.py made them)."""

import csv
import json
import shutil

import pytest

from tests.conftest import ROOT

SAVED = ROOT / "tests" / "golden" / "saved"
COMMON = [
    "model=hf", "model.path=model", "data=jsonl", "data.train=pairs.jsonl", "data.val=pairs.jsonl", "data.batch_size=4",
    "data.max_length=32", "samples.n=4", "samples.max_new_tokens=4", "optimizer.lr=1e-2", "logger=csv",
    "trainer.enable_progress_bar=false", "trainer.max_epochs=3", "checkpoint.every_n_steps=3",
    "reference.cache_dir=cache", "data.cache_dir=tokens",
]  # fmt: skip


@pytest.fixture
def resume(command, tmp_path):
    """Resumes in a copy of the saved folders; returns the exit code and everything printed."""
    for name in ("model", "run"):
        shutil.copytree(SAVED / name, tmp_path / ("outputs/run" if name == "run" else name))
    shutil.copytree(SAVED / "sweep", tmp_path / "outputs" / "sweeps" / "s")
    shutil.copy(SAVED / "pairs.jsonl", tmp_path)
    return lambda *overrides, sweep=False: command(*["-m"][: int(sweep)], *COMMON, *overrides)


def rows(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def agree(found, expected) -> None:
    """Equal to rounding: the rows added by the resumed run may round differently on another machine.

    What is measured on completions differs: since 0.1.0 they are other draws.
    """
    for row, expected_row in zip(rows(found), rows(expected), strict=True):
        assert row.keys() == expected_row.keys()
        for name, cell in expected_row.items():
            if name.startswith(("val/kl", "val/samples/")):
                assert bool(row[name]) == bool(cell), name
                continue
            assert row[name] == cell or float(row[name]) == pytest.approx(float(cell), rel=1e-3, abs=1e-4), name


def test_a_run_resumes_once_the_changed_default_is_typed(resume, tmp_path):
    run = tmp_path / "outputs" / "run"
    saved = (run / "metrics.csv").read_bytes()
    code, output = resume("scheduler=constant", "output_dir=outputs/run")
    assert code == 2 and "type scheduler.warmup_steps=0.1 to resume it" in output
    code, output = resume("scheduler=constant", "output_dir=outputs/run", "scheduler.warmup_steps=0.1")
    assert code == 0 and "resuming" in output, output
    assert (run / "metrics.csv").read_bytes()[: len(saved)] == saved, "the saved rows are kept byte by byte"
    agree(run / "metrics.csv", SAVED / "expected" / "run.csv")


def test_a_sweep_skips_what_is_done_and_resumes_what_is_not(resume, tmp_path):
    sweep = tmp_path / "outputs" / "sweeps" / "s"
    code, output = resume("beta=0.1,0.5", "sweep_name=s", sweep=True)
    assert code == 0 and "skipped  beta0.1" in output and "done     beta0.5" in output, output
    assert "resuming" in (sweep / "beta0.5" / "output.log").read_text()
    agree(sweep / "beta0.5" / "metrics.csv", SAVED / "expected" / "beta0.5.csv")
    assert json.loads((sweep / "beta0.5" / "summary.json").read_text())["steps"] == 18
