"""The worker processes of launcher=joblib: a GPU for each, and every job saved when the sweep is stopped."""

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
    """Round robin over the worker processes, which keep their device.

    >>> [gpu_of(f"LokyProcess-{n}", ["0", "1", "2"]) for n in (1, 2, 3, 4)], gpu_of("MainProcess", ["5"])
    (['0', '1', '2', '0'], '5')
    """
    number = process.rpartition("-")[2]
    return gpus[(int(number) - 1) % len(gpus) if number.isdigit() else 0]


@contextmanager
def saved_when_stopped() -> Iterator[None]:
    """Around a job, in its worker: a worker that is stopped takes no further job."""
    os.setpgid(0, 0)  # Ctrl-C reaches the parent alone, which hands it on: two signals would end a job unsaved
    _handle(_leave)
    try:
        yield
    except SystemExit as end:
        _park(int(end.code or 0))
    finally:
        _handle(lambda number, frame: _park(128 + number))


def stop(running: Callable[[], Collection[int]], wait: bool) -> None:
    """In the process that launches: let the jobs of the workers, if there are any, be saved, and end the workers.

    Args:
        running: the process ids of the jobs that run at this moment.
        wait: whether jobs are waited for; otherwise their workers are killed.
    """
    # By name: the loader of a job that runs here may have child processes too.
    workers: list[Any] = [c for c in multiprocessing.active_children() if c.name.startswith("LokyProcess")]
    told: list[Any] = []
    while wait:
        pids = running()
        busy = [worker for worker in workers if worker.pid in pids and worker.is_alive()]
        if not busy:
            break
        for worker in busy:
            if worker not in told:  # a worker that was between two jobs at first is told when the next has begun
                worker.terminate()
        told += busy
        time.sleep(0.05)
    for worker in workers:
        if worker.pid is not None:  # loky's processes have no kill()
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
        worker.join()


def _handle(handler: Callable[[int, Any], Any]) -> None:
    for number in NUMBERS:
        signal.signal(number, handler)


def _leave(number: int, frame: Any) -> None:
    _handle(signal.SIG_IGN)  # type: ignore[arg-type]  one signal is enough
    sys.exit(128 + number)


def _park(code: int) -> None:
    """In a worker whose job is saved: loky kills all workers as soon as one has ended, and others may still be saving.
    The parent ends them all, or has itself ended."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.05)
    os._exit(code)
