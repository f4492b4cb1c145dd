"""A sweep: what each job has of its own, what the jobs share, and how the same command continues it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback

RETURNED: list[float] = []


class Returned(Callback):
    """Records what jobs return to Hydra."""

    def on_job_end(self, config, job_return, **kwargs):
        RETURNED.append(job_return.return_value)


def interrupt(texts: list[str]) -> list[float]:
    """A scorer during which a signal arrives."""
    os.kill(os.getpid(), int(os.environ["TEST_SIGNAL"]))
    time.sleep(5)
    return [0.0] * len(texts)


def break_for_seed_1(texts: list[str]) -> list[float]:
    if HydraConfig.get().job.num == 1 and "TEST_REPAIRED" not in os.environ:
        raise RuntimeError("no scorer today")
    return [0.0] * len(texts)


@pytest.fixture
def sweep(command, short):
    """Runs a sweep named `s` with one optimizer step per job; returns the exit code and everything printed."""
    options = [s for s in short if not s.startswith("output_dir")]
    options += ["trainer.max_steps=1", "samples.n=2", "samples.max_new_tokens=2", "logger=csv", "sweep_name=s"]
    return lambda *arguments: command("-m", *options, *arguments)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "outputs" / "sweeps" / "s"


def record(path) -> dict:
    return json.loads((path / "job.json").read_text())


def forwards(folder) -> int:
    return sum(json.loads(path.read_text())["reference_forwards"] for path in folder.rglob("summary.json"))


def test_a_job_has_a_folder_named_by_its_overrides_a_log_and_a_line_of_progress(sweep, folder):
    code, output = sweep("loss=dpo,ipo", "seed=choice(3)", "beta=0.5")
    assert code == 0, output
    names = ["lossdpo-seed3", "lossipo-seed3"]
    assert sorted(p.parent.name for p in folder.glob("*/job.json")) == names
    for name in names:
        job = record(folder / name)
        value = json.loads((folder / name / "summary.json").read_text())["objective"]["value"]
        assert job["state"] == "done" and job["objective"] == {"name": "val/rewards/accuracies", "value": value}
        assert f"written to {folder / name}" in (folder / name / "output.log").read_text()
        assert "held out" in (folder / name / "output.log").read_text() and (folder / name / "train.log").exists()
        (line,) = [line for line in output.splitlines() if "done" in line and name in line]
        assert f"val/rewards/accuracies {value:.4g}   best" in line
    assert output.count(" s left") == 1 and "written to" not in output, "the output of jobs goes to their logs"
    assert (folder / "summary.csv").exists() and "report     outputs/sweeps/s/report.html" in output


def test_the_reference_runs_once_for_the_whole_sweep(sweep, command, short, folder, tmp_path):
    assert sweep("seed=0,1,2")[0] == 0
    fresh = [
        f"reference.cache_dir={tmp_path}/another",
        "trainer.max_steps=1",
        "samples.n=2",
        "samples.max_new_tokens=2",
    ]
    assert command(*short, *fresh)[0] == 0
    assert forwards(folder) == forwards(tmp_path / "run") > 0


def test_a_job_does_not_affect_the_next_one(sweep, command, short, folder, tmp_path):
    """The second job, after a very different first one, writes the same bytes as a run of its own."""
    last = ["trainer.max_steps=2", "samples.n=8", "samples.max_new_tokens=8"]
    assert sweep(*last, "loss=bco_pair,dpo", "+trainer.deterministic=true")[0] == 0
    assert command(*short, *last, "logger=csv", "+trainer.deterministic=true")[0] == 0
    single, second = ((path / "metrics.csv").read_bytes() for path in (tmp_path / "run", folder / "lossdpo"))
    assert single == second


def test_a_job_returns_its_objective_to_the_sweeper(sweep, folder):
    RETURNED.clear()
    callback = "+hydra.callbacks.seen._target_=tests.sweep.test_sweep.Returned"
    assert sweep("beta=0.1,0.5", "objective=val/loss", callback)[0] == 0
    summaries = [json.loads((folder / f"beta{beta}" / "summary.json").read_text()) for beta in (0.1, 0.5)]
    assert RETURNED == [summary["metrics"]["val/loss"] for summary in summaries]


def test_a_failing_job_stops_no_other_and_is_listed_at_the_end(sweep, folder):
    code, output = sweep("beta=-1,0.1", "seed=0,7")
    assert code == 1
    assert [record(folder / f"beta{b}-seed0")["state"] for b in (-1, 0.1)] == ["failed", "done"]
    failures = output.split("2 of 4 jobs failed:")[1]
    error = "ConfigError: beta=-1: found -1; allowed: a number in (0, inf)"
    assert (
        "beta=-1 seed=7" in failures and failures.count(error) == 2 and f"{folder}/beta-1-seed0/output.log" in failures
    )
    assert "continue with: python -m lightning_dpo.train -m " in failures and "sweep_name=s" in failures
    assert error in (folder / "beta-1-seed0" / "output.log").read_text()
    assert "0.1-seed7" in (folder / "summary.csv").read_text(), "the other jobs are in the comparison"


def test_the_same_command_runs_the_unfinished_jobs(sweep, folder, monkeypatch):
    again = ("seed=0,1", "samples.scorer=tests.sweep.test_sweep.break_for_seed_1")
    code, output = sweep(*again)
    assert code == 1 and "RuntimeError: no scorer today" in output and "1 of 2 jobs failed" in output
    monkeypatch.setenv("TEST_REPAIRED", "1")
    code, output = sweep(*again)
    assert code == 0 and output.count("] skipped") == 1, output
    assert "RuntimeError: no scorer today" in (folder / "seed1" / "output.log").read_text(), (
        "the log keeps the earlier attempt"
    )
    assert not list(folder.parent.glob("*.replaced"))


def test_finished_jobs_are_skipped_and_changed_ones_are_not(sweep, folder):
    assert sweep("seed=0,1")[0] == 0
    written = (folder / "seed0" / "summary.json").stat().st_mtime_ns
    code, output = sweep("seed=0,1,2", "logger=csv")
    assert code == 0 and output.count("] skipped") == 2 and output.count("] running") == 1
    assert (folder / "seed0" / "summary.json").stat().st_mtime_ns == written

    assert "] skipped" in sweep("seed=0", "trainer.max_time=00:01:00:00", "checkpoint.every_n_steps=7")[1]

    code, output = sweep("seed=0", "optimizer.lr=1e-3")
    assert code == 0 and "] skipped" not in output
    assert "optimizer.lr 0.0006 -> 0.001" in (folder / "seed0" / "train.log").read_text()
    (kept,) = (folder.parent / "s.replaced").iterdir()
    assert (kept / "summary.json").stat().st_mtime_ns == written and record(kept)["config"]["optimizer.lr"] == 0.0006
    assert record(folder / "seed0")["config"]["optimizer.lr"] == 0.001


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_sweep_with_its_exit_code_and_the_command_to_continue(sweep, folder, monkeypatch, number):
    monkeypatch.setenv("TEST_SIGNAL", str(int(number)))
    handler = signal.getsignal(number)
    code, output = sweep("seed=0,1", "samples.scorer=tests.sweep.test_sweep.interrupt")
    assert code == 128 + number and "stopped; continue with: python -m lightning_dpo.train -m" in output
    assert record(folder / "seed0")["state"] == "stopped" and not (folder / "seed1").exists()
    assert signal.getsignal(number) == handler


def test_a_folder_in_use_is_refused_and_so_is_a_job(sweep, folder):
    (folder / "seed1").mkdir(parents=True)
    with FileLock(folder / ".sweep.lock"):
        code, output = sweep("seed=0,1")
        assert code == 2 and "another sweep is running in this folder" in output
    with FileLock(folder / "seed1" / ".job.lock"):
        code, output = sweep("seed=0,1")
        assert code == 1 and "1 of 2 jobs failed" in output and "is running this job" in output
    assert record(folder / "seed0")["state"] == "done"


def test_two_jobs_of_one_folder_are_refused(sweep, folder):
    code, output = sweep("seed=0,1", "hydra.sweep.subdir=same")
    assert code == 1 and "another job of this sweep has the same folder" in output
    assert record(folder / "same")["config"]["seed"] == 0 and record(folder / "same")["state"] == "done"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "beta=0.1,0.5", "output_dir=x"], "output_dir=... in a sweep"),
        (["-m", "beta=0.1,0.5", "run_name=x"], "run_name=... in a sweep"),
        (["-m", "beta=0.1,0.5", "++output_dir=x"], "output_dir=... in a sweep"),
        (["-m", "beta=0.1,0.5", "++run_name=x"], "run_name=... in a sweep"),
        (["-m", "beta=0.1,0.5", "hydra.sweep.subdir='${loss._target_}/${beta}'"], "a sweep is one level of folders"),
        (["-m", "beta=0.1,0.5", "resume=a.ckpt"], "resume=a.ckpt in a sweep would start every job from one"),
        (["-m", "beta=0.1,0.5", "launcher=submitit_slurm"], "sbatch is not installed here"),
        (["-m", "beta=0.1,0.5", "loss=dpo,sft"], "beta"),  # sft has none
        (["sweep_name=x"], "sweep_name=x without a sweep"),
        (["launcher=joblib"], "launcher=joblib without a sweep"),
    ],
)
def test_a_contradiction_is_refused_with_a_reason(command, arguments, message, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _: None)
    code, printed = command(*arguments)
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert code == 2 and message in line and "Traceback" not in printed


@pytest.mark.slow
def test_processes_get_the_gpus_in_turn(sweep, folder, monkeypatch):
    """Two processes with two devices, by name only; no GPU is needed."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code, output = sweep("seed=0,1", "beta=0.1", "trainer=cpu", "launcher=joblib")
    assert code == 0, output
    assert {record(folder / f"seed{n}")["gpus"] for n in (0, 1)} <= {"4", "7"}
    assert "2 jobs, launcher joblib" in output and output.count("done") == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_every_job_of_a_stopped_sweep_is_saved_whichever_worker_ends_first(short, folder, tmp_path, number):
    """loky kills all workers when one exits. Here one job takes much longer to finish its step."""
    options = [o for o in short if not o.startswith(("output_dir", "data.batch_size"))] + ["samples.n=0", "logger=csv"]
    options += ["data.batch_size=1,48", "trainer.max_epochs=2000", "checkpoint.every_n_steps=100000", "data.val=null"]
    line = [sys.executable, "-m", "lightning_dpo.train", "-m", *options, "sweep_name=s", "launcher=joblib"]
    line += ["hydra.launcher.n_jobs=2"]
    with open(tmp_path / "output", "w") as file:
        process = subprocess.Popen(line, cwd=tmp_path, stdout=file, stderr=file, start_new_session=True)
    files = [folder / f"data.batch_size{size}" / "metrics.csv" for size in (1, 48)]
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        if all(file.exists() and file.read_bytes().count(b"\n") > 3 for file in files):
            os.kill(process.pid, number) if number == signal.SIGTERM else os.killpg(process.pid, number)
            break
        time.sleep(0.1)
    assert process.wait(60) == 128 + number, (tmp_path / "output").read_text()
    for file in files:
        assert record(file.parent)["state"] == "stopped" and (file.parent / "checkpoints" / "last.ckpt").exists()
    output = (tmp_path / "output").read_text()
    assert "stopped; continue with:" in output and "jobs failed" not in output
    assert not [p for p in psutil.process_iter() if p.ppid() == process.pid], "no worker is left"


def test_a_sweep_over_lists_in_the_home_folder_with_options_between_ends_in_its_report(command, short, few_reviews):
    home = Path.home()
    shutil.copy(few_reviews, home / "few.jsonl")
    options = [s for s in short if not s.startswith(("output_dir", "data.train"))] + ["trainer.max_steps=1"]
    lists = ["optimizer.betas=[0.9,0.95],[0.9,0.999]", "samples.n=0", "logger=csv", "hydra.sweep.dir=~/of lists"]
    code, output = command(*options, "-m", "data.train=[~/few.jsonl]", *lists)
    assert code == 0, output
    assert "[0.9,0.95]" in output.split("held out")[1] and "unhashable" not in output
    assert sorted(p.parent.name for p in (home / "of lists").glob("*/summary.json")) == [
        "optimizer.betas-0.9-0.95",
        "optimizer.betas-0.9-0.999",
    ]
    assert "[0.9,0.999]" in (home / "of lists" / "report.html").read_text()
