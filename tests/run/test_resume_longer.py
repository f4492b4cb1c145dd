"""A finished run resumes with a later end: the same command with `resume_override=true`."""

import csv
import json

import pytest

CONSTANT = [
    "logger=csv",
    "scheduler=constant",
    "scheduler.warmup_steps=0",
    "samples.n=0",
    "trainer.val_check_interval=2",
]
"""A schedule that does not depend on the end; a validation inside each epoch of three steps, and one after it."""

EARLY = "lightning.pytorch.callbacks.EarlyStopping"
STOP = "+callbacks.stop={_target_: %s, monitor: val/loss, mode: max, patience: %d, check_on_train_epoch_end: false}"


@pytest.fixture
def folder(command, short, tmp_path):
    """Trains in a folder with this name; returns the folder."""

    def run(name: str, *overrides: str):
        options = [o for o in short if not o.startswith("output_dir")]
        code, output = command(*options, *CONSTANT, f"output_dir={tmp_path}/{name}", *overrides)
        assert code == 0, output
        return tmp_path / name

    return run


def steps(folder) -> list[dict[str, str]]:
    """The rows of the optimizer steps."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    return [{name: cell for name, cell in row.items() if not name.startswith("val/")} for row in rows]


def validations(folder) -> dict[str, str]:
    """The loss of each validation, by step."""
    with open(folder / "metrics.csv", newline="") as file:
        return {row["step"]: row["val/loss"] for row in csv.DictReader(file) if row["val/loss"]}


def weights(folder) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("end", [1, 2, 3, 4])
def test_a_run_ended_by_max_steps_resumes_as_if_uninterrupted(folder, end):
    whole = folder("whole", "trainer.max_steps=5", "trainer.max_epochs=9")
    folder("parts", f"trainer.max_steps={end}", "trainer.max_epochs=9")
    parts = folder("parts", "trainer.max_steps=5", "trainer.max_epochs=9", "resume_override=true")
    assert len(steps(parts)) == 5 and steps(parts) == steps(whole)
    assert validations(whole).items() <= validations(parts).items(), "the first end adds one"
    assert weights(parts) == weights(whole)


def test_a_run_ended_by_max_epochs_resumes_as_if_uninterrupted(folder):
    whole = folder("whole", "trainer.max_epochs=3")
    folder("parts", "trainer.max_epochs=1")
    parts = folder("parts", "trainer.max_epochs=3", "resume_override=true")
    assert len(steps(parts)) == 9 and steps(parts) == steps(whole)
    assert validations(whole).items() <= validations(parts).items()
    assert weights(parts) == weights(whole)


def test_a_run_that_stopped_early_resumes_with_more_patience(folder):
    """`mode: max` on a falling loss: with a patience of 1, the second validation stops training."""
    whole = folder("whole", "trainer.max_epochs=3")
    early = folder("parts", "trainer.max_epochs=3", STOP % (EARLY, 1))
    assert len(steps(early)) < 9
    again = ["trainer.max_epochs=3", "resume_override=true", STOP % (EARLY, 99)]
    assert steps(folder("parts", *again)) == steps(whole) and weights(early) == weights(whole)


def test_a_run_that_stopped_early_stays_ended(folder):
    early = folder("early", "trainer.max_epochs=3", STOP % (EARLY, 1))
    (early / "summary.json").unlink()  # killed just before it was written
    before = steps(early), weights(early)
    assert (steps(folder("early", "trainer.max_epochs=3", STOP % (EARLY, 1))), weights(early)) == before


def test_resuming_from_another_folder_needs_an_unused_folder(folder, command, short, tmp_path):
    start = folder("start", "trainer.max_steps=2") / "checkpoints" / "last.ckpt"
    options = [o for o in short if not o.startswith("output_dir")] + [*CONSTANT, f"resume={start}"]
    code, output = command(*options, "trainer.max_steps=2", f"output_dir={folder('other', 'trainer.max_steps=1')}")
    assert code == 2 and "already holds a run" in output
    code, output = command(*options, "trainer.max_steps=3", "resume_override=true", f"output_dir={tmp_path}/fresh")
    assert code == 0, output
    both = (start.parent.parent, tmp_path / "fresh")
    first = [json.loads((f / "summary.json").read_text())["metrics_at_start"] for f in both]
    assert first[0] == first[1], "the start of the first run, not of the continuation"
