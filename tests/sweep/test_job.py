"""A job: what makes it another one, the capture of its output, and its isolation from the next job."""

import os
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf

from lightning_dpo.run.identity import differences, fingerprint
from lightning_dpo.sweep import job

CFG = OmegaConf.create(
    {
        "seed": 0,
        "output_dir": "out",
        "run_name": "name",
        "sweep_name": None,
        "logger": {"wandb": {"mode": "offline", "name": "${run_name}"}},
        "trainer": {"default_root_dir": "${output_dir}", "callbacks": []},
        "optimizer": {"lr": 1e-3, "betas": [0.9, 0.95]},
        "data": {"api_key": "hunter2"},
    }
)


def with_changes(**changes):
    cfg = CFG.copy()
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value)
    return fingerprint(cfg)


def test_places_and_names_do_not_make_another_run():
    same = with_changes(output_dir="else", run_name="x", sweep_name="s", logger__wandb__mode="online")
    assert differences(with_changes(), same, "sweep") == []


def test_settings_that_make_another_run_are_named():
    other = with_changes(seed=1, optimizer__betas=[0.9, 0.99])
    changes = ["seed 0 -> 1", "optimizer.betas [0.9, 0.95] -> [0.9, 0.99]"]
    assert differences(with_changes(), other, "sweep") == changes
    without = {key: value for key, value in with_changes().items() if key != "seed"}
    assert differences(without, with_changes(), "sweep") == ["seed None -> 0"]


def test_a_fingerprint_holds_no_secret():
    assert "hunter2" not in str(with_changes())


def test_the_output_of_a_job_and_its_children_is_in_its_log(tmp_path, capfd):
    with job.printed_to(tmp_path / "output.log"):
        print("a line")
        print("an error", file=sys.stderr)
        subprocess.run([sys.executable, "-c", "print('a child')"], check=True)
        os.write(2, b"a library\n")
    print("afterwards")
    assert sorted((tmp_path / "output.log").read_text().splitlines()) == ["a child", "a library", "a line", "an error"]
    assert "".join(capfd.readouterr()).strip() == "afterwards"


def test_changes_of_a_job_to_its_process_end_with_it(monkeypatch):
    monkeypatch.setenv("TEST_KEPT", "1")
    with job.isolated():
        os.environ.update(TEST_KEPT="2", TEST_NEW="1")
        torch.use_deterministic_algorithms(True)
    assert os.environ["TEST_KEPT"] == "1" and "TEST_NEW" not in os.environ
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_finished_job_is_not_trained_again_because_a_default_changed(tmp_path):
    def run(invocation: str, **changes):
        cfg = OmegaConf.create(
            {"objective": "val/loss", "scheduler": {"name": "constant", "warmup_steps": 0} | changes}
        )
        cfg = OmegaConf.merge(CFG, cfg)
        return job.run_in_folder(tmp_path / "job", cfg, lambda: ran.append(invocation) or 1.0, invocation, [])

    ran: list[str] = []
    run("first", warmup_steps=0.1)
    (tmp_path / "job" / "summary.json").write_text("{}")
    with pytest.raises(job.JobFailed, match="type scheduler.warmup_steps=0.1 to resume it, or type another sweep_name"):
        run("second")
    assert run("third", warmup_steps=0.1) == 1.0 and ran == ["first"], "skipped"
    run("fourth", warmup_steps=5)
    assert ran == ["first", "fourth"], "any other change starts anew"
