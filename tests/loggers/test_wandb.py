"""Loggers: W&B and TensorBoard have the same numbers as metrics.csv."""

import csv

import pytest

from lightning_dpo.loggers.metrics_csv import MetricsCSV


def cells(path) -> dict[str, list[tuple[int, float]]]:
    """metrics.csv as {name: [(step, value), ...]}."""
    with open(path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return {n: [(int(r["step"]), float(r[n])) for r in rows if r[n]] for n in rows[0] if n != "step"}


def flat(node, path: str = ""):
    """A nested record as {dotted or slashed name: value}."""
    if not isinstance(node, dict):
        yield path, node
        return
    for name, child in node.items():
        yield from flat(child, f"{path}.{name}" if path else name)


def test_wandb_has_the_names_steps_and_values_of_the_csv(command, short, tmp_path, wandb_records):
    code, output = command(*short, "logger.wandb.group=g", "run_name=named")
    assert code == 0 and "anonymous" not in output, "W&B prints no warning"
    records = wandb_records(tmp_path / "run")
    run = next(r["run"] for r in records if r["type"] == "run")
    assert (run["display_name"], run["run_group"], run["project"]) == ("named", "g", "lightning_dpo")

    logged: dict[str, list[tuple[int, float]]] = {}
    for history in (dict(flat(r["history"]["item"])) for r in records if r["type"] == "history"):
        step = history.pop("trainer/global_step")
        for name, value in history.items():
            if name.startswith(("train/", "val/")) and not name.startswith("val/samples."):
                logged.setdefault(name, []).append((step, value))
    expected = cells(tmp_path / "run")
    assert set(logged) == set(expected) and "train/rewards/chosen" in logged and "val/kl" in logged
    for name, values in expected.items():
        assert [s for s, _ in logged[name]] == [s for s, _ in values], name
        assert [v for _, v in logged[name]] == pytest.approx([v for _, v in values], rel=1e-6), name
    assert any("label_smoothing" in str(r) for r in records if r["type"] == "config"), "the resolved configuration"


def test_a_validation_without_completions_drops_the_values_of_earlier_ones(tmp_path):
    metrics = MetricsCSV(tmp_path)
    metrics.log_metrics({"val/loss": 0.7, "val/kl": 0.0, "val/samples/reward": 1.0}, 0)
    metrics.log_metrics({"train/loss": 0.6}, 1)
    assert metrics.last["val/kl"] == 0.0, "a training step does not change them"
    metrics.log_metrics({"val/loss": 0.5}, 2)
    assert metrics.last == {"train/loss": 0.6, "val/loss": 0.5}
    resumed = MetricsCSV(tmp_path)
    resumed.load_state_dict(metrics.state_dict())
    assert resumed.last == metrics.last and resumed.first == metrics.first and resumed.first["val/kl"] == 0.0


def test_wandb_has_the_axis_and_the_best_values(command, short, tmp_path, wandb_records):
    assert command(*short, "trainer.max_steps=1", "samples.n=0")[0] == 0
    records = wandb_records(tmp_path / "run")
    metrics = {m.get("name") or m["glob_name"]: m for m in (r["metric"] for r in records if r["type"] == "metric")}
    for name in ("*", "val/loss", "val/rewards/accuracies"):
        assert metrics[name]["step_metric"] == "trainer/global_step"
    assert metrics["val/loss"]["summary"] == {"last": True, "min": True}
    assert metrics["val/rewards/accuracies"]["summary"] == {"last": True, "max": True}
    assert [r["exit"]["exit_code"] for r in records if r["type"] == "exit"] == [0]


def test_a_resumed_run_goes_on_in_its_wandb_run_and_another_run_does_not(command, short, tmp_path):
    options = [*short, "samples.n=0", "scheduler=constant"]

    def parts(folder: str) -> list[str]:
        return [path.name.split("-")[-1] for path in (tmp_path / folder / "wandb").glob("offline-run-*")]

    assert command(*options, "trainer.max_steps=1")[0] == 0
    code, output = command(*options, "trainer.max_steps=2", "resume_override=true")
    assert code == 0, output
    first, second = parts("run")
    assert first == second
    checkpoint = f"resume={tmp_path}/run/checkpoints/last.ckpt"
    branch = [f"output_dir={tmp_path}/branch", "trainer.max_steps=3", "resume_override=true", checkpoint]
    assert command(*options, *branch)[0] == 0
    assert len(parts("branch")) == 1 and parts("branch") != [first]


def test_each_job_of_a_sweep_is_a_run_of_one_group_with_its_exit_code(command, short, tmp_path, wandb_records):
    options = [s for s in short if not s.startswith("output_dir")]
    scorer = "samples.scorer=tests.sweep.test_sweep.break_for_seed_1"
    code, output = command("-m", *options, "trainer.max_steps=1", "sweep_name=g", "seed=0,1", scorer)
    assert code == 1, output
    ids = set()
    for name, exit_code in (("seed0", 0), ("seed1", 1)):
        records = wandb_records(tmp_path / "outputs" / "sweeps" / "g" / name)
        (run,) = (r["run"] for r in records if r["type"] == "run")
        assert (run["display_name"], run["run_group"]) == (name, "g")
        assert [r["exit"]["exit_code"] for r in records if r["type"] == "exit"] == [exit_code]
        ids.add(run["run_id"])
    assert len(ids) == 2


def test_tensorboard_has_the_names_steps_and_values_of_the_csv(command, short, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    code, output = command(*short, "logger=tensorboard")
    assert code == 0, output
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    expected = cells(tmp_path / "run")
    assert set(expected) <= set(events.Tags()["scalars"])
    for name, values in expected.items():
        found = [(e.step, e.value) for e in events.Scalars(name)]
        assert [s for s, _ in found] == [s for s, _ in values], name
        assert [v for _, v in found] == pytest.approx([v for _, v in values], rel=1e-6), name
