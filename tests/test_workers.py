"""A stopped sweep ends its workers when their jobs are saved, whatever a worker does at that moment."""

import multiprocessing
import signal
from types import SimpleNamespace

import pytest

from lightning_dpo import workers


class Worker:
    """Stands for a process of loky: it takes its next job `after` as many looks, and saves it when it is told."""

    def __init__(self, pid: int, after: int):
        self.name, self.pid, self.after, self.told = f"LokyProcess-{pid}", pid, after, 0

    def is_alive(self) -> bool:
        return True

    def terminate(self) -> None:
        self.told += 1

    def join(self) -> None:
        pass


@pytest.fixture
def killed(monkeypatch):
    found = []
    monkeypatch.setattr(workers.os, "kill", lambda pid, number: found.append((pid, number)))
    monkeypatch.setattr(workers.time, "sleep", lambda seconds: None)
    return found


def test_a_worker_that_was_between_two_jobs_is_told_when_the_next_has_begun(killed, monkeypatch):
    at_work, between = Worker(1, after=0), Worker(2, after=2)
    loader = SimpleNamespace(name="Process-9", pid=9)
    monkeypatch.setattr(multiprocessing, "active_children", lambda: [at_work, between, loader])
    looks = iter(range(100))

    def running() -> set[int]:
        look = next(looks)
        assert not killed and look < 30, "the second is never told"
        saving = {w.pid for w in (at_work, between) if w.after * 2 <= look and not (w.told and look > 8)}
        return saving

    workers.stop(running, wait=True)
    assert (at_work.told, between.told) == (1, 1), "once each: a second signal would end a job unsaved"
    assert killed == [(1, signal.SIGKILL), (2, signal.SIGKILL)]


def test_a_second_signal_waits_for_nobody(killed, monkeypatch):
    at_work = Worker(1, after=0)
    monkeypatch.setattr(multiprocessing, "active_children", lambda: [at_work])
    workers.stop(lambda: {1}, wait=False)
    assert not at_work.told and killed == [(1, signal.SIGKILL)]
