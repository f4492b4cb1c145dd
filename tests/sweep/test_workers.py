"""A stopped sweep ends its workers when their jobs are saved, also a worker that was between two jobs."""

import multiprocessing
import signal
from types import SimpleNamespace

import pytest

from lightning_dpo.sweep import workers


class Worker:
    """A stand-in for a process of loky."""

    def __init__(self, pid: int):
        self.name, self.pid, self.terminated = f"LokyProcess-{pid}", pid, 0

    def is_alive(self) -> bool:
        return True

    def terminate(self) -> None:
        self.terminated += 1

    def join(self) -> None:
        pass


@pytest.fixture
def killed(monkeypatch):
    found = []
    monkeypatch.setattr(workers.os, "kill", lambda pid, number: found.append((pid, number)))
    monkeypatch.setattr(workers.time, "sleep", lambda seconds: None)
    return found


def test_a_worker_between_two_jobs_is_terminated_when_the_next_has_begun(killed, monkeypatch):
    busy, between, loader = Worker(1), Worker(2), SimpleNamespace(name="Process-9", pid=9)
    monkeypatch.setattr(multiprocessing, "active_children", lambda: [busy, between, loader])
    answers = iter([{1}, {1}, {1, 2}, {2}, {2}, set()])  # the running jobs at each call, until all are saved
    workers.stop(lambda: next(answers), wait=True)
    assert next(answers, None) is None, "it waited for all of them"
    assert (busy.terminated, between.terminated) == (1, 1), "once each: a second signal would end a job unsaved"
    assert killed == [(1, signal.SIGKILL), (2, signal.SIGKILL)]


def test_a_second_signal_kills_the_workers_at_once(killed, monkeypatch):
    busy = Worker(1)
    monkeypatch.setattr(multiprocessing, "active_children", lambda: [busy])
    workers.stop(lambda: {1}, wait=False)
    assert not busy.terminated and killed == [(1, signal.SIGKILL)]
