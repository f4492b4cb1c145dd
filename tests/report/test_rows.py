"""Reading runs: which are counted, which settings distinguish them, what the numbers mean."""

import json
from statistics import stdev

import pytest
from filelock import FileLock

from lightning_dpo.report import page, terminal
from lightning_dpo.report.rows import differing, points, read, table
from tests.report import folders


def test_every_run_is_listed_whatever_its_state(tmp_path):
    runs = {run.name: run for run in read(folders.sweep(tmp_path))}
    assert len(runs) == 10 and sum(run.done for run in runs.values()) == 8
    assert runs["beta-1-lossdpo-seed0"].state == "failed"
    assert runs["beta-1-lossdpo-seed0"].error == "ConfigError: beta=-1: found -1"
    assert runs["beta0.05-lossdpo-seed9"].state == "stopped"
    assert runs["beta0.05-lossdpo-seed9"].end["val/kl"] == 2.0, "as far as metrics.csv goes"


def test_a_running_job_without_a_process_that_holds_its_lock_was_killed(tmp_path):
    folder = folders.run(tmp_path / "a", finished=False, job={"state": "running"})
    with FileLock(folder / ".job.lock"):
        assert read(tmp_path)[0].state == "running"
    assert read(tmp_path)[0].state == "killed"


def test_a_run_outside_a_sweep_is_done_if_it_has_a_summary(tmp_path):
    folders.run(tmp_path / "a")
    folders.run(tmp_path / "b", finished=False)
    assert [run.state for run in read(tmp_path)] == ["done", "unfinished"]
    (single,) = read(tmp_path / "a")
    assert single.name == "a"


def test_folders_inside_a_run_hidden_and_replaced_folders_are_not_runs(tmp_path):
    folders.run(tmp_path / "s" / "a")
    for path in ("s/a/wandb/offline-run-1/files", "s/.submitit/1", "s.replaced/a-1"):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "config.yaml").write_text("wandb: 1\n")
    assert [run.name for run in read(tmp_path)] == ["s/a"]


def test_numbered_jobs_are_sorted_by_number(tmp_path):
    for name in ("10-x", "9-x", "0-x"):
        folders.run(tmp_path / name)
    assert [run.name for run in read(tmp_path)] == ["0-x", "9-x", "10-x"]


def test_only_keys_that_differ_are_columns_and_each_once(tmp_path):
    """loss.beta and data.seed repeat beta and seed; a key that one run lacks does not differ."""
    folders.run(tmp_path / "a", "dpo", 0.1, 0, more="optimizer:\n  lr: 0.001\nx: 1\n")
    folders.run(tmp_path / "b", "ipo", 0.5, 1, more="optimizer:\n  lr: 0.002\nx: 1\nloss_only: true\n")
    assert differing(read(tmp_path)) == ["loss", "beta", "seed", "optimizer.lr"]


def test_a_loss_has_the_name_in_the_override(tmp_path):
    """Two files may configure the same function."""
    folders.run(tmp_path / "a", "dpo", job={"state": "done", "overrides": ["loss=my_dpo"]})
    folders.run(tmp_path / "b", "dpo", job={"state": "done", "overrides": ["loss=dpo"]})
    assert [row["loss"] for row in table(read(tmp_path))] == ["my_dpo", "dpo"]


def test_chosen_rejected_and_margin_are_nats_since_the_start(tmp_path):
    folders.run(tmp_path / "a", chosen=-1.5)
    (row,) = table(read(tmp_path))
    assert (row["chosen"], row["rejected"], row["margin"]) == (-1.5, -4.0, 2.5)
    assert (row["accuracy"], row["KL"], row["reward"], row["length"]) == (0.75, 2.0, 1.0, 17.0)


def test_only_columns_that_no_run_has_are_left_out(tmp_path):
    folders.run(tmp_path / "a", kl=None, reward=None)
    folders.run(tmp_path / "b", kl=3.0, reward=None)
    rows = table(read(tmp_path))
    assert [row["KL"] for row in rows] == [None, 3.0] and "reward" not in rows[0]


def test_another_objective_is_a_column_under_its_name(tmp_path):
    folder = folders.run(tmp_path / "a")
    summary = json.loads((folder / "summary.json").read_text()) | {"objective": {"name": "val/loss", "value": 0.5}}
    (folder / "summary.json").write_text(json.dumps(summary))
    assert table(read(tmp_path))[0]["val/loss"] == 0.5


def test_a_point_is_the_mean_over_seeds_with_their_standard_deviation(tmp_path):
    folders.sweep(tmp_path)
    found = points(read(tmp_path))
    assert [(p.line, p.beta, len(p.runs)) for p in found] == [
        ("dpo", 0.5, 2), ("dpo", 0.05, 2), ("ipo", 0.5, 2), ("ipo", 0.05, 2),
    ]  # fmt: skip
    assert found[0].mean["reward"] == pytest.approx(1.1) and found[0].sd["reward"] == pytest.approx(stdev([1.0, 1.2]))
    assert found[1].mean["KL"] == pytest.approx(6.5), "the stopped run does not count"


def test_runs_that_differ_in_more_than_beta_and_seed_are_separate_lines(tmp_path):
    for name, rate in (("a", 0.001), ("b", 0.002)):
        folders.run(tmp_path / name, more=f"optimizer:\n  lr: {rate}\n")
    assert [p.line for p in points(read(tmp_path))] == ["dpo optimizer.lr=0.001", "dpo optimizer.lr=0.002"]


def test_a_repeated_run_is_not_another_seed(tmp_path):
    """It has the same seed and configuration, apart from checkpoint keys; the last one counts."""
    for name, seed, reward, steps in (("a", 0, 1.0, 5), ("b", 1, 3.0, 5), ("c", 0, 2.0, 7)):
        folders.run(tmp_path / name, seed=seed, reward=reward, more=f"checkpoint:\n  every_n_steps: {steps}\n")
    (point,) = points(read(tmp_path))
    assert point.line == "dpo" and point.seeds == 2 and point.runs == ("a", "b", "c")
    assert point.mean["reward"] == 2.5 and point.sd["reward"] == pytest.approx(stdev([2.0, 3.0]))


def test_truncated_files_are_read_as_far_as_possible(tmp_path):
    folder = folders.run(tmp_path / "a", finished=False)
    with open(folder / "samples.jsonl", "a") as file:
        file.write('{"step": 4, "prom')
    assert len(read(tmp_path)[0].samples()) == 4
    (folder / "summary.json").write_text('{"metr')
    assert read(tmp_path)[0].state == "unfinished"


def test_lists_and_mappings_that_differ_are_shown_as_typed(tmp_path, capsys):
    for name, betas in (("a", "[0.9, 0.95]"), ("b", "[0.9, 0.999]")):
        train = f"[{{path: {name}.jsonl, weight: 2}}]"
        folders.run(tmp_path / name, more=f"  more: {train}\noptimizer:\n  betas: {betas}\n")
    runs = read(tmp_path)
    first, second = table(runs)
    assert first["optimizer.betas"] == "[0.9,0.95]" and second["data.more"] == "[{path:b.jsonl,weight:2}]"
    assert {p.line for p in points(runs)} == {
        "dpo data.more=[{path:a.jsonl,weight:2}] optimizer.betas=[0.9,0.95]",
        "dpo data.more=[{path:b.jsonl,weight:2}] optimizer.betas=[0.9,0.999]",
    }
    terminal.show(tmp_path)
    assert "[0.9,0.999]" in capsys.readouterr().out
    assert "[0.9,0.95]" in page.write(tmp_path).read_text()
