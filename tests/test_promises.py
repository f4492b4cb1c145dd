"""What a run promises: stopped anywhere, it goes on to the same result; what was written is never damaged.

Each test is a promise. Runs are forked, so that `kill -9` is real and nothing has to be imported again.
"""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from lightning_dpo import train
from lightning_dpo.demo import ASSETS

SMALL = ["logger=csv", "samples.n=4", "samples.max_new_tokens=4", "trainer.enable_progress_bar=false"]
SMALL += ["data.batch_size=4", "trainer.max_epochs=3", "checkpoint.every_n_steps=1"]

CONFIGURATIONS = {
    "shuffled": [],
    "accumulated, uneven": ["trainer.accumulate_grad_batches=3", "trainer.val_check_interval=2", "loss=bco_pair"],
    "mixture, workers": ["data.num_workers=1", "data.train=[{path: A, weight: 2}, {path: B, weight: 0.5}]"],
    "no validation, copied reference": ["data.val=null", "reference=copy", "optimizer.lr=1e-3"],
}


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Forks a run into a folder by its name; returns the folder and the process."""
    rows = (ASSETS / "train.jsonl").read_text().splitlines(keepends=True)
    for name, part in (("A", rows[:18]), ("B", rows[18:29]), ("V", rows[29:35])):
        (tmp_path / f"{name}.jsonl").write_text("".join(part))
    files = {letter: str(tmp_path / f"{letter}.jsonl") for letter in "AB"}
    sources = [f"data.train={files['A']}", f"data.val={tmp_path}/V.jsonl", f"reference.cache_dir={tmp_path}/cache"]

    def run(name: str, *options: str) -> tuple[Path, int]:
        typed = [o.replace("path: A", f"path: {files['A']}").replace("path: B", f"path: {files['B']}") for o in options]
        if (process := os.fork()) == 0:
            _run_and_exit([*SMALL, *sources, *typed, f"output_dir={tmp_path}/{name}"], tmp_path / f"{name}.out")
        return tmp_path / name, process

    return run


def _run_and_exit(arguments: list[str], out: Path) -> None:
    """In the forked process, which must not go on with the tests."""
    code = 99
    try:
        with open(out, "a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.argv = ["train.py", *arguments]
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        os.chdir(out.parent)
        train.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(process: int) -> int:
    """The exit code of a process; negative: the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def running(process: int) -> bool:
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def until(process: int, condition) -> None:
    """Wait for a condition, or for the end of the process."""
    while running(process) and not condition():
        time.sleep(0.002)


def rows(folder: Path) -> int:
    path = folder / "metrics.csv"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def result(folder: Path) -> dict[str, bytes]:
    """What must be equal, byte by byte."""
    files = [folder / "metrics.csv", folder / "samples.jsonl", *sorted((folder / "model").iterdir())]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.exists()}


def said(folder: Path) -> str:
    return folder.with_name(folder.name + ".out").read_text()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_run_killed_twice_ends_as_if_it_had_never_stopped(start, name):
    folder, process = start("whole", *CONFIGURATIONS[name])
    assert ended(process) == 0, said(folder)
    total = rows(folder)
    for share in (0.4, 0.7):
        again, process = start("killed", *CONFIGURATIONS[name])
        until(process, lambda: rows(again) >= share * total)  # noqa: B023
        os.kill(process, signal.SIGKILL)
        assert ended(process) == -signal.SIGKILL
    again, process = start("killed", *CONFIGURATIONS[name])
    assert ended(process) == 0, said(again)
    assert said(again).count("resuming") == 2, said(again)
    assert result(again) == result(folder)
