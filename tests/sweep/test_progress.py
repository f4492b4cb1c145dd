"""The lines that a running sweep prints about its jobs."""

import re
from datetime import UTC, datetime, timedelta

import pytest

from lightning_dpo.files import write_json
from lightning_dpo.sweep import progress

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def records_of(*states: tuple[str, float | None]) -> list[dict]:
    name, began = "val/rewards/accuracies", BEGAN.isoformat()
    return [
        {"state": state, "seconds": 20, "began": began, "objective": {"name": name, "value": value}}
        for state, value in states
    ]


def test_a_line_has_the_best_so_far_and_the_time_left():
    jobs = records_of(("done", 0.7), ("done", 0.8), ("done", 0.75))
    line = progress.line("beta0.1", jobs[2], jobs, total=8)
    assert line == "[3/8] done     beta0.1   val/rewards/accuracies 0.75   best 0.8   20 s   1 min 40 s left"
    assert "left" not in progress.line("beta0.1", jobs[2], jobs, total=None), "the length of a search is unknown"


def test_the_time_left_counts_running_jobs():
    two = records_of(("done", 0.7), ("running", None), ("running", None))
    assert progress.seconds_left(two, total=5, at_once=2, now=BEGAN) == 4 * 20 / 2
    assert progress.seconds_left(two, total=5, at_once=2, now=BEGAN + timedelta(seconds=5)) == (4 * 20 - 2 * 5) / 2
    assert progress.seconds_left(two[1:], total=5, at_once=2) is None, "before the first has finished"


def test_the_time_left_counts_the_slot_of_the_job_that_just_ended():
    two = records_of(("done", 0.7), ("running", None))
    assert progress.seconds_left(two, total=6, at_once=2, now=BEGAN) == 5 * 20 / 2
    last = records_of(("done", 0.7), ("done", 0.7), ("running", None))
    assert progress.seconds_left(last, total=3, at_once=2, now=BEGAN) == 20, "one job cannot use two slots"


def test_two_jobs_at_once_halve_the_time_left(tmp_path, capfd):
    """When a job ends, its slot is free and still counts."""
    overview = progress.Overview(tmp_path, "ours", total=6)
    began = datetime.now(UTC).isoformat()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "job.json", {"invocation": "ours", "state": "running", "began": began})
    overview.update()
    done = {"state": "done", "seconds": 60, "objective": {"name": "val/loss", "value": 1.0}}
    write_json(tmp_path / "a" / "job.json", {"invocation": "ours", "began": began} | done)
    overview.update()
    overview.terminal.close()
    assert re.search("2 min (29|30) s left", capfd.readouterr().out), "five jobs of a minute, two at a time"


@pytest.mark.parametrize(("name", "best"), [("val/rewards/accuracies", 3), ("val/loss", 1), ("val/kl", 1)])
def test_the_smallest_loss_or_kl_is_the_best(name, best):
    jobs = [{"state": "done", "objective": {"name": name, "value": value}} for value in (2, 1, 3, None)]
    assert progress.best(jobs) == best
