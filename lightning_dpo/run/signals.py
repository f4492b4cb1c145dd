"""Ctrl-C and SIGTERM: a run finishes its step, saves and exits."""

import signal
import threading
from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(SystemExit):
    """A signal ended the run. The exit code is 128 + its number, as in shells."""


class Stop:
    """A context manager around a run. While training, the first signal waits for the end of the step. A second one, or
    one outside training, ends the run at once, by way of the previous handler if there is one (a sweep's).
    """

    def __init__(self):
        self.number: int | None = None
        """The pending signal."""
        self.waiting = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in NUMBERS}
        return self

    def __exit__(self, *error: Any) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def wait_for_step(self, waiting: bool) -> None:
        """Set whether a signal waits. Also replaces the handler that Lightning installs for SIGTERM."""
        self.waiting = waiting
        for number in self._previous:
            signal.signal(number, self._handle)

    def leave(self, number: int) -> None:
        """Errors: Interrupted, or what the previous handler raises."""
        previous = self._previous[number]
        if callable(previous) and previous is not signal.default_int_handler:
            previous(number, None)
        raise Interrupted(128 + number)

    def _handle(self, number: int, frame: Any) -> None:
        if not self.waiting or self.number is not None:
            self.leave(number)
        self.number = number
        print(f"{signal.Signals(number).name}: finishing the step and saving; a second one exits at once", flush=True)
