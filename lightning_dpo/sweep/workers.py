"""Worker processes of launcher=joblib: each has one GPU, and a stopped sweep saves every running job."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from lightning_dpo.run.signals import NUMBERS


def gpu_of(process: str, gpus: Sequence[str]) -> str:
    """The GPU of a worker process, assigned round robin; a worker keeps its GPU.

    >>> [gpu_of(f"LokyProcess-{n}", ["0", "1", "2"]) for n in (1, 2, 3, 4)], gpu_of("MainProcess", ["5"])
    (['0', '1', '2', '0'], '5')
    """
    number = process.rpartition("-")[2]
    return gpus[(int(number) - 1) % len(gpus) if number.isdigit() else 0]


@contextmanager
def handling_signals() -> Iterator[None]:
    """Around a job, in its worker: a signal saves the job, and the worker takes no other."""
    os.setpgid(0, 0)  # Ctrl-C then reaches the parent only, which forwards it; a second signal would end a job unsaved
    _handle(_exit_at_first)
    try:
        yield
    except SystemExit as end:
        _wait_for_parent(int(end.code or 0))
    finally:
        _handle(lambda number, frame: _wait_for_parent(128 + number))


def stop(running: Callable[[], Collection[int]], wait: bool) -> None:
    """In the launching process: have the workers save their jobs, then end the workers.

    Args:
        running: returns the process ids of the running jobs.
        wait: false: kill the workers at once.
    """
    # By name, because the data loader of a job in this process may have child processes too.
    workers: list[Any] = [c for c in multiprocessing.active_children() if c.name.startswith("LokyProcess")]
    signalled: set[Any] = set()
    while wait:
        pids = running()
        busy = {worker for worker in workers if worker.pid in pids and worker.is_alive()}
        if not busy:
            break
        for worker in busy - signalled:  # a worker that was between two jobs is signalled when the next has begun
            worker.terminate()
        signalled |= busy
        time.sleep(0.05)
    for worker in workers:
        with suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)  # processes of loky have no kill()
        worker.join()


def _handle(handler: Callable[[int, Any], Any]) -> None:
    for number in NUMBERS:
        signal.signal(number, handler)


def _exit_at_first(number: int, frame: Any) -> None:
    _handle(signal.SIG_IGN)  # type: ignore[arg-type]  later signals must not interrupt saving
    sys.exit(128 + number)


def _wait_for_parent(code: int) -> None:
    """In a worker whose job is saved: wait until the parent kills it, or has itself ended. loky would kill all workers
    as soon as one exits, and others may still be saving."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.05)
    os._exit(code)
