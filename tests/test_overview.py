"""What is printed about a job while a sweep runs."""

from datetime import UTC, datetime, timedelta

import pytest

from lightning_dpo import overview

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def records_of(*jobs: tuple[str, float | None]) -> list[dict]:
    name, began = "val/rewards/accuracies", BEGAN.isoformat()
    return [
        {"state": state, "seconds": 20, "began": began, "objective": {"name": name, "value": value}}
        for state, value in jobs
    ]


def test_a_line_has_the_best_so_far_and_the_time_left():
    seen = records_of(("done", 0.7), ("done", 0.8), ("done", 0.75))
    line = overview.line("beta0.1", seen[2], seen, total=8)
    assert line == "[3/8] done     beta0.1   val/rewards/accuracies 0.75   best 0.8   20 s   1 min 40 s left"
    assert "left" not in overview.line("beta0.1", seen[2], seen, total=None), "a search does not know its end"


def test_the_time_left_counts_what_runs():
    two = records_of(("done", 0.7), ("running", None), ("running", None))
    assert overview.seconds_left(two, total=5, now=BEGAN) == 4 * 20 / 2
    assert overview.seconds_left(two, total=5, now=BEGAN + timedelta(seconds=5)) == (4 * 20 - 2 * 5) / 2
    assert overview.seconds_left(two[1:], total=5) is None, "before the first has run"


@pytest.mark.parametrize(("name", "best"), [("val/rewards/accuracies", 3), ("val/loss", 1), ("val/kl", 1)])
def test_of_a_loss_the_smallest_is_the_best(name, best):
    seen = [{"state": "done", "objective": {"name": name, "value": value}} for value in (2, 1, 3, None)]
    assert overview.best(seen) == best
