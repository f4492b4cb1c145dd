"""A run stopped anywhere resumes to the same result, and its files are never damaged.

Runs are forked, so that `kill -9` is real and nothing has to be imported again.
"""

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from lightning import Callback
from omegaconf import DictConfig, OmegaConf
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_dpo import CopyReference, DPOModule, PreferenceDataModule, losses, train
from lightning_dpo.batch import TokenLogps
from lightning_dpo.callbacks.saving import Saving
from lightning_dpo.data import store as data_store
from lightning_dpo.demo import ASSETS
from lightning_dpo.errors import ConfigError, OutOfTime
from lightning_dpo.loggers.metrics_csv import MetricsCSV
from lightning_dpo.ragged import Ragged
from lightning_dpo.reference.store import ReferenceStore
from lightning_dpo.run import checkpoint
from lightning_dpo.run.checkpoint import AtomicCheckpointIO
from lightning_dpo.run.folder import RunFolder
from lightning_dpo.run.resume import rng_state, set_rng_state
from lightning_dpo.run.signals import Stop
from lightning_dpo.samples import SampleCallback
from tests.conftest import llama, random_pairs
from tests.test_module import loader, trainer

SMALL = ["logger=csv", "samples.n=4", "samples.max_new_tokens=4", "trainer.enable_progress_bar=false"]
SMALL += ["data.batch_size=4", "trainer.max_epochs=3", "checkpoint.every_n_steps=1"]

EARLY = "{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss, mode: max"
EARLY += ", check_on_train_epoch_end: false"
CONFIGURATIONS = {
    "shuffled, ends within an epoch": ["trainer.max_steps=8"],
    "accumulated, uneven": ["trainer.accumulate_grad_batches=3", "trainer.val_check_interval=2"],
    "mixture, workers": ["data.num_workers=1", "data.train=[{path: A, weight: 2}, {path: B, weight: 0.5}]"],
    "no validation, copied reference": ["data.val=null", "reference=copy", "loss=bco_pair"],
}
STOPPED_EARLY = {
    "within an epoch": [f"+callbacks.stop={EARLY}, patience: 3}}", "trainer.accumulate_grad_batches=2"],
    "when min_epochs are over": [f"+callbacks.stop={EARLY}, patience: 1}}", "+trainer.min_epochs=2"],
}
SCHEDULES = {
    "by epoch": ["StepLR", "+scheduler.step_size=1", "scheduler.interval=epoch", "trainer.val_check_interval=2"],
    "by validation": ["ReduceLROnPlateau", "scheduler.monitor=val/loss", "+scheduler.mode=max", "+scheduler.patience=0",
                      "scheduler.frequency=2", "trainer.val_check_interval=2"],
    "by an epoch's validation": ["ReduceLROnPlateau", "scheduler.monitor=val/loss", "+scheduler.mode=max",
                                 "+scheduler.patience=0", "scheduler.interval=epoch", "trainer.val_check_interval=3"],
}  # fmt: skip
"""Schedules that Lightning steps at other times than after each optimizer step; five batches are an epoch."""
SCHEDULES = {
    n: ["scheduler=custom", f"scheduler._target_=torch.optim.lr_scheduler.{o[0]}", *o[1:]] for n, o in SCHEDULES.items()
}
CONFIGURATIONS |= SCHEDULES
CONFIGURATIONS |= {f"stopped early {n}": ["trainer.val_check_interval=2", *more] for n, more in STOPPED_EARLY.items()}


class Runs:
    """Forks a run into a folder with this name; returns the folder and the process."""

    def __init__(self, parent: Path):
        self.parent = parent
        rows = (ASSETS / "train.jsonl").read_text().splitlines(keepends=True)
        for name, part in (("A", rows[:18]), ("B", rows[18:29]), ("V", rows[29:35])):
            (parent / f"{name}.jsonl").write_text("".join(part))
        self.options = [*SMALL, f"data.train={parent}/A.jsonl", f"data.val={parent}/V.jsonl"]
        self.options += [f"reference.cache_dir={parent}/cache", f"data.cache_dir={parent}/cache"]

    def __call__(self, name: str, *options: str, limit: int | None = None, dies: bool = False) -> tuple[Path, int]:
        """`limit`: bytes of the largest file that it can write; `dies`: kill it as soon as it has written a checkpoint.
        It leads a process group of its own, as from a shell."""
        common = self.options if "reference=copy" not in options else [o for o in self.options if "reference." not in o]
        typed = [o.replace("path: ", f"path: {self.parent}/").replace(", weight", ".jsonl, weight") for o in options]
        if (process := os.fork()) == 0:
            os.setpgid(0, 0)
            if dies:
                save = AtomicCheckpointIO.save_checkpoint
                kill = partial(os.kill, os.getpid(), signal.SIGKILL)
                AtomicCheckpointIO.save_checkpoint = lambda *args, **options: (save(*args, **options), kill())[0]
            self._run_and_exit([*common, *typed, f"output_dir={self.parent}/{name}"], name, limit)
        return self.parent / name, process

    def _run_and_exit(self, arguments: list[str], name: str, limit: int | None) -> None:
        """In the forked process, which must not return to the tests."""
        code: int | str | None = 99
        try:
            with open(self.parent / f"{name}.out", "a") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
            sys.argv = ["train.py", *arguments]
            os.chdir(self.parent)
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            train.main()
            code = 0
        except SystemExit as end:
            code = end.code
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 1)


@pytest.fixture
def start(tmp_path) -> Runs:
    return Runs(tmp_path)


def ended(process: int) -> int:
    """The exit code of a process; negative for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def running(process: int) -> bool:
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def until(process: int, condition) -> None:
    """Wait until the condition holds or the process ends."""
    while running(process) and not condition():
        time.sleep(0.002)


def rows(folder: Path) -> int:
    path = folder / "metrics.csv"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def result(folder: Path) -> dict[str, bytes]:
    """The files that must have the same bytes, whether or not a run was stopped."""
    files = [folder / "metrics.csv", folder / "samples.jsonl", *sorted((folder / "model").iterdir())]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.exists()}


def printed(folder: Path) -> str:
    return folder.with_name(folder.name + ".out").read_text()


def run_with_kills(start, name: str, options: list[str], moments) -> Path:
    """Kill a run at each of the moments (a function of its folder), then let it finish."""
    for moment in moments:
        folder, process = start(name, *options)
        until(process, lambda: moment(folder))  # noqa: B023
        if running(process):
            os.kill(process, signal.SIGKILL)
        assert ended(process) in (0, -signal.SIGKILL), printed(folder)
    folder, process = start(name, *options)
    assert ended(process) == 0, printed(folder)
    return folder


FAST = ["accumulated, uneven", "stopped early within an epoch"]


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in CONFIGURATIONS])
def test_a_run_killed_twice_ends_like_an_uninterrupted_one(start, name):
    whole = run_with_kills(start, "whole", CONFIGURATIONS[name], [])
    total = rows(whole)
    moments = [lambda folder, part=part: rows(folder) >= part * total for part in (0.4, 0.7)]
    folder = run_with_kills(start, "killed", CONFIGURATIONS[name], moments)
    assert printed(folder).count("resuming") == 2, printed(folder)
    assert result(folder) == result(whole)


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in CONFIGURATIONS])
def test_a_run_killed_after_each_checkpoint_ends_like_an_uninterrupted_one(start, name):
    """Inside an epoch, between two epochs, after the last step, and while the model is exported."""
    whole = run_with_kills(start, "whole", CONFIGURATIONS[name], [])
    steps = checkpoint.read(whole / "checkpoints" / "last.ckpt")["global_step"]
    for _ in range(steps + 2):  # the last two have nothing left to train
        folder, process = start("killed", *CONFIGURATIONS[name], dies=True)
        assert ended(process) == -signal.SIGKILL, printed(folder)
    folder, process = start("killed", *CONFIGURATIONS[name])
    assert ended(process) == 0, printed(folder)
    assert printed(folder).count("resuming") == steps + 2, printed(folder)
    assert result(folder) == result(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_prints_how_to_continue(start, number):
    options = ["checkpoint.every_n_steps=1000", "trainer.max_epochs=1"]
    folder, process = start("stopped", *options)
    until(process, lambda: rows(folder) >= 4)
    os.kill(process, number)
    assert ended(process) == 128 + number, printed(folder)
    assert "stopped; continue with: python -m lightning_dpo.train" in printed(folder)
    assert "Traceback" not in printed(folder)
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == rows(folder) - 2
    if number == signal.SIGTERM:
        whole, again = (run_with_kills(start, name, options, []) for name in ("whole", "stopped"))
        assert "resuming" in printed(again) and result(again) == result(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_lets_data_workers_finish_the_step(start, number):
    """Ctrl-C in a shell and SIGTERM of a cluster reach data workers too. Here a step needs more than they prefetch."""
    options = ["data.num_workers=2", "data.batch_size=1", "trainer.accumulate_grad_batches=9", "data.val=null"]
    folder, process = start("stopped", *options, "checkpoint.every_n_steps=1000")
    until(process, lambda: rows(folder) >= 2)
    os.killpg(process, number)
    assert ended(process) == 128 + number, printed(folder)
    assert "stopped; continue with:" in printed(folder) and "Traceback" not in printed(folder)
    assert checkpoint.read(folder / "checkpoints" / "last.ckpt")["global_step"] >= 1


def test_max_time_saves_in_time(tmp_path):
    module = DPOModule(llama(), partial(losses.dpo, beta=0.1), CopyReference())
    metrics, began = MetricsCSV(tmp_path), time.monotonic()
    saving = Saving(tmp_path, 10**6, metrics, {}, Stop(), max_time="00:00:00:06", began=began)
    run = trainer(
        callbacks=[saving], plugins=[AtomicCheckpointIO()], logger=[metrics], log_every_n_steps=1, max_epochs=10**6
    )
    with pytest.raises(OutOfTime, match="trainer.max_time is over at step"):
        run.fit(module, loader(random_pairs(), 3))
    assert time.monotonic() < began + 6
    saved = checkpoint.read(tmp_path / "checkpoints" / "last.ckpt")
    assert saved["global_step"] == run.global_step == metrics.file.lines - 1 > 1


def test_a_full_disk_ends_the_run_with_the_path_and_keeps_the_checkpoint(start):
    """A limit on file sizes stands for the full disk; only the checkpoint exceeds it."""
    options = ["trainer.max_epochs=1"]
    folder, process = start("full", *options)
    until(process, lambda: (folder / "checkpoints" / "previous.ckpt").exists())
    os.kill(process, signal.SIGKILL)
    ended(process)
    before = (folder / "checkpoints" / "last.ckpt").read_bytes()
    folder, process = start("full", *options, limit=1 << 21)
    assert ended(process) == 1
    assert f"{folder}/checkpoints/last.ckpt: the checkpoint could not be written" in printed(folder)
    assert "File too large" in printed(folder)
    assert (folder / "checkpoints" / "last.ckpt").read_bytes() == before
    whole, again = (run_with_kills(start, name, options, []) for name in ("whole", "full"))
    assert result(again) == result(whole)


def test_too_little_disk_space_is_reported_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10_000))
    module = DPOModule(llama(), partial(losses.dpo, beta=0.1), CopyReference())
    saving = Saving(tmp_path, 1, MetricsCSV(tmp_path), {}, Stop())
    with pytest.raises(ConfigError, match=f"{tmp_path}: 1e-05 GB are free; checkpoints"):
        saving.on_fit_start(trainer(), module)


def test_an_unwritable_folder_is_reported_at_once(tmp_path):
    (tmp_path / "file").touch()
    for output_dir in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match=f"output_dir={output_dir}: "):
            RunFolder(run_config(output_dir), {})


def test_saving_recreates_a_vanished_folder_and_does_not_use_tmpdir(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nonexistent")
    AtomicCheckpointIO().save_checkpoint({"step": 1}, tmp_path / "gone" / "checkpoints" / "last.ckpt")
    assert checkpoint.read(tmp_path / "gone" / "checkpoints" / "last.ckpt") == {"step": 1}
    (tmp_path / "now-a-file").touch()
    path = tmp_path / "now-a-file" / "last.ckpt"
    with pytest.raises(OSError, match=f"{path}: the checkpoint could not be written"):
        AtomicCheckpointIO().save_checkpoint({"step": 1}, path)


def run_config(output_dir: Path, **more) -> DictConfig:
    return OmegaConf.create({"output_dir": str(output_dir), "resume": "auto", "resume_override": False, **more})


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    first, second = (RunFolder(run_config(tmp_path), {}) for _ in range(2))
    with first.locked():
        with pytest.raises(ConfigError, match="another process is running in this folder"), second.locked():
            pass
    with second.locked():
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss.beta": 0.3}, "loss.beta 0.1 -> 0.3"),
        ({"loss._target_": "ipo"}, "loss._target_ dpo -> ipo"),
        ({"data.train": "b.jsonl"}, "data.train a.jsonl -> b.jsonl"),
        ({"data.batch_size": 8}, "data.batch_size 4 -> 8"),
        ({"model.path": "other"}, "model.path one -> other"),
        ({}, "the pairs of train"),
        ({"trainer.max_time": "00:01:00:00", "data.num_workers": 3, "logger.wandb.mode": "online"}, None),
    ],
)
def test_resuming_with_changed_settings_is_refused_and_names_the_keys(tmp_path, change, message, caplog):
    config = {"loss.beta": 0.1, "loss._target_": "dpo", "data.train": "a.jsonl", "data.batch_size": 4}
    config |= {"model.path": "one", "trainer.max_time": None, "data.num_workers": 0}
    previous = RunFolder(run_config(tmp_path), config)
    assert previous.begin({"train": ["content"], "val": []}) is None
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"run": previous.metadata}, path)
    data = {"train": ["content"] if change else ["edited"], "val": []}
    if message is None:
        assert RunFolder(run_config(tmp_path), config | change).begin(data) == path
        return
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        RunFolder(run_config(tmp_path), config | change).begin(data)
    assert RunFolder(run_config(tmp_path, resume_override=True), config | change).begin(data) == path
    summary = {"objective": {"value": 1}, "run": previous.metadata}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert RunFolder(run_config(tmp_path), config).finished() == summary
    if change:
        extended = RunFolder(run_config(tmp_path, resume_override=True), config | change)
        assert extended.finished() is None and extended.begin(data) == path
        assert not (tmp_path / "summary.json").exists(), "if this run is stopped, the same command resumes it"
    assert message in caplog.text


def tensors(seed: int) -> dict:
    return {
        "run": None,
        "seed": seed,
        "state_dict": {"w": torch.randn(300, generator=torch.Generator().manual_seed(seed))},
    }


def test_resume_takes_the_path_of_a_checkpoint_and_never_refuses_a_used_folder(tmp_path):
    with pytest.raises(ConfigError, match="resume=.*nothing.ckpt: no such file; allowed: auto, never"):
        RunFolder(run_config(tmp_path, resume=f"{tmp_path}/nothing.ckpt"), {}).begin({})
    previous = RunFolder(run_config(tmp_path / "previous"), {"seed": 1})
    previous.begin({})
    path = tmp_path / "previous" / "checkpoints" / "kept.ckpt"
    AtomicCheckpointIO().save_checkpoint({"run": previous.metadata}, path)
    assert RunFolder(run_config(tmp_path / "branch", resume=str(path)), {"seed": 1}).begin({}) == path
    with pytest.raises(ConfigError, match="seed 1 -> 2"):
        RunFolder(run_config(tmp_path / "branch", resume=str(path)), {"seed": 2}).begin({})
    (tmp_path / "previous" / "metrics.csv").touch()
    with pytest.raises(ConfigError, match=r"already holds a run \(metrics.csv\)"):
        RunFolder(run_config(tmp_path / "previous", resume="never"), {}).finished()


@pytest.mark.parametrize("damage", ["cut", "emptied", "altered"])
def test_a_damaged_checkpoint_is_named_and_the_previous_one_is_used(tmp_path, caplog, damage):
    for seed in (1, 2):
        AtomicCheckpointIO().save_checkpoint(tensors(seed), tmp_path / "last.ckpt")
    content = bytearray((tmp_path / "last.ckpt").read_bytes())
    if damage == "altered":
        at = content.index(tensors(2)["state_dict"]["w"].numpy().tobytes())
        content[at + 70] ^= 1
    (tmp_path / "last.ckpt").write_bytes({"cut": content[:-200], "emptied": b""}.get(damage, content))
    assert checkpoint.newest(tmp_path) == tmp_path / "previous.ckpt"
    assert "last.ckpt" in caplog.text and "resuming from" in caplog.text
    assert checkpoint.read(tmp_path / "previous.ckpt")["seed"] == 1
    (tmp_path / "previous.ckpt").write_bytes(b"x")
    with pytest.raises(ConfigError, match="every checkpoint is damaged: .*previous.ckpt"):
        checkpoint.newest(tmp_path)


def test_an_altered_byte_is_detected_or_harmless(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(tensors(1), path)
    content, expected, detected = path.read_bytes(), tensors(1), 0
    for at in random.Random(0).sample(range(len(content)), 200):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        try:
            found = checkpoint.read(path)
        except checkpoint.Damaged:
            detected += 1
        else:
            assert found["seed"] == 1 and torch.equal(found["state_dict"]["w"], expected["state_dict"]["w"]), at
    assert detected > 100


class Payload:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path):
    torch.save({"run": Payload(tmp_path / "ran")}, tmp_path / "last.ckpt")
    with pytest.raises(ConfigError, match="last.ckpt: it holds more than tensors and plain values"):
        checkpoint.newest(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_kill_while_a_checkpoint_is_written_leaves_a_complete_one(tmp_path):
    numbers, path = random.Random(0), tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(tensors(0), path)
    for _ in range(20):
        if (process := os.fork()) == 0:
            while True:
                AtomicCheckpointIO().save_checkpoint(tensors(0) | {"ballast": torch.zeros(300_000)}, path)
        time.sleep(numbers.uniform(0.005, 0.03))
        os.kill(process, signal.SIGKILL)
        ended(process)
        found = checkpoint.newest(tmp_path)
        assert found is not None and torch.equal(
            checkpoint.read(found)["state_dict"]["w"], tensors(0)["state_dict"]["w"]
        )
    assert not list(tmp_path.glob("*.damaged"))


def test_a_checkpoint_holds_the_policy_two_moments_and_no_reference(tmp_path):
    pairs = random_pairs()
    module = DPOModule(llama(), partial(losses.dpo, beta=0.1), CopyReference())
    saving = Saving(tmp_path, 1, MetricsCSV(tmp_path), {}, Stop())
    trainer(callbacks=[saving], plugins=[AtomicCheckpointIO()]).fit(module, loader(pairs, 3))
    path, weights = tmp_path / "checkpoints" / "last.ckpt", sum(p.numel() * 4 for p in module.policy.parameters())
    names_and_plain_values = 40_000  # bytes, whatever the size of the model
    assert path.stat().st_size <= 1.1 * 3 * weights + names_and_plain_values
    assert not [name for name in checkpoint.read(path)["state_dict"] if "reference" in name]


def test_random_generators_are_restored():
    state = rng_state()
    drawn = [
        (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random())
        for _ in range(2)
        if not set_rng_state(state)
    ]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("killed_at", [0, 2])
def test_one_of_two_runs_building_a_cache_may_be_killed_half_way(tmp_path, killed_at):
    """Reference values in four parts; the first process dies with some, the second waits and computes the rest."""
    pairs, store = random_pairs(8), ReferenceStore(tmp_path / "cache")
    parts, log = [[0, 1], [2, 3], [4, 5], [6, 7]], tmp_path / "computed"

    def compute(part, pause: float = 0.0):
        batch = pairs.select(part)
        with open(log, "a") as file:
            file.write(f"{part[0]}\n")
        time.sleep(pause)
        chosen, rejected = (Ragged(side.values.float(), side.lengths) for side in (batch.chosen, batch.rejected))
        return TokenLogps(chosen, rejected)

    first, second = os.fork(), 0
    if first == 0:
        store.get({"key": 1}, pairs, parts, partial(compute, pause=0.15))
        os._exit(0)
    until(first, lambda: log.exists() and log.read_text().count("\n") > killed_at)
    if (second := os.fork()) == 0:
        store.get({"key": 1}, pairs, parts, compute)
        os._exit(0)
    time.sleep(0.05)
    os.kill(first, signal.SIGKILL)
    assert (ended(first), ended(second)) == (-signal.SIGKILL, 0)
    computed = log.read_text().split()
    assert len(computed) == 5, "only the part that was interrupted is computed twice"
    stored = store.get({"key": 1}, pairs, parts, lambda part: pytest.fail("it is there"))
    assert torch.equal(stored.chosen.values, pairs.chosen.values.float())


def test_tokenising_killed_half_way_leaves_no_partial_entry(tmp_path, few_reviews):
    def sizes() -> list[int]:
        module = PreferenceDataModule(ASSETS / "model", few_reviews, batch_size=4, cache_dir=tmp_path / "tokens")
        module.setup()
        return [len(part) for part in module.train_pairs.parts]  # type: ignore[union-attr]

    if (process := os.fork()) == 0:
        write = data_store.write_json
        data_store.write_json = lambda *args: (write(*args), time.sleep(60))  # complete but not renamed yet
        sizes()
        os._exit(0)
    until(process, lambda: list((tmp_path / "tokens").glob(".*/manifest.json")))
    os.kill(process, signal.SIGKILL)
    ended(process)
    assert sizes() == [48]
    (entry,) = (path for path in (tmp_path / "tokens").iterdir() if path.is_dir())
    assert not entry.name.startswith("."), "the partial entry is removed"


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_random_kills_change_nothing(start, name):
    """Thirteen kills per configuration, at random moments from building the caches to the export."""
    began = time.monotonic()
    whole = run_with_kills(start, "whole", CONFIGURATIONS[name], [])
    seconds, numbers, kills = time.monotonic() - began, random.Random(name), 0
    while kills < 13:
        for used in ("killed", "cache"):
            shutil.rmtree(start.parent / used, ignore_errors=True)
        finished = False
        while not finished and kills < 13:
            folder, process = start("killed", *CONFIGURATIONS[name])
            end = time.monotonic() + numbers.uniform(0, seconds)
            until(process, lambda: time.monotonic() > end)  # noqa: B023
            if finished := not running(process):
                assert ended(process) == 0, printed(folder)
            else:
                os.kill(process, signal.SIGKILL)
                ended(process)
                kills += 1
        if not finished:
            folder, process = start("killed", *CONFIGURATIONS[name])
            assert ended(process) == 0, printed(folder)
        assert result(folder) == result(whole)


@pytest.mark.slow
def test_memory_and_open_files_do_not_grow(tmp_path, few_reviews):
    """5,000 steps with a validation every 500."""
    usage: list[tuple[int, int]] = []

    class Watch(Callback):
        def on_validation_end(self, *args):
            process = psutil.Process()
            usage.append((process.memory_info().rss, process.num_fds()))

    data = PreferenceDataModule(ASSETS / "model", few_reviews, few_reviews, batch_size=4, cache_dir=tmp_path / "tokens")
    policy = LlamaForCausalLM(
        LlamaConfig(vocab_size=128, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    )
    module = DPOModule(policy, partial(losses.dpo, beta=0.1), CopyReference())
    metrics = MetricsCSV(tmp_path)
    callbacks = [Watch(), SampleCallback(n=4, max_new_tokens=8, output_dir=tmp_path)]
    callbacks.append(Saving(tmp_path, 250, metrics, {}, Stop()))
    options = dict(max_epochs=-1, max_steps=5000, val_check_interval=500, check_val_every_n_epoch=None)
    trainer(callbacks=callbacks, plugins=[AtomicCheckpointIO()], logger=[metrics], log_every_n_steps=1, **options).fit(
        module, datamodule=data
    )
    assert len(usage) == 10 and metrics.file.lines - 1 == 5010
    memory, files = zip(*usage[2:], strict=True)
    print("MB:", [m >> 20 for m in memory], "files:", files)
    assert max(memory) - memory[0] < 30 << 20 and max(files) <= files[0]
