"""A stopped sweep ends its workers when their jobs are saved, whatever a worker does at that moment."""

import multiprocessing
import signal
from types import SimpleNamespace

import pytest

from lightning_dpo.sweep import workers


class Worker:
    """Stands for a process of loky."""

    def __init__(self, pid: int):
        self.name, self.pid, self.told = f"LokyProcess-{pid}", pid, 0

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
    at_work, between, loader = Worker(1), Worker(2), SimpleNamespace(name="Process-9", pid=9)
    monkeypatch.setattr(multiprocessing, "active_children", lambda: [at_work, between, loader])
    looks = iter([{1}, {1}, {1, 2}, {2}, {2}, set()])  # whose job runs, until each has been saved
    workers.stop(lambda: next(looks), wait=True)
    assert next(looks, None) is None, "it waited for all of them"
    assert (at_work.told, between.told) == (1, 1), "once each: a second signal would end a job unsaved"
    assert killed == [(1, signal.SIGKILL), (2, signal.SIGKILL)]


def test_a_second_signal_waits_for_nobody(killed, monkeypatch):
    at_work = Worker(1)
    monkeypatch.setattr(multiprocessing, "active_children", lambda: [at_work])
    workers.stop(lambda: {1}, wait=False)
    assert not at_work.told and killed == [(1, signal.SIGKILL)]
