"""How a run ends before its end: by Ctrl-C or SIGTERM, or because its time is over."""

import signal
import threading
from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(SystemExit):
    """A signal ended the run; the code is 128 + its number, as shells have it."""


class Stop:
    """While training, the first signal waits for the end of the step; otherwise, and a second time, it ends the run.

    A context manager around a run. Handlers that were there before are called at the end: a sweep has its own.
    """

    def __init__(self):
        self.number: int | None = None
        """The signal that waits."""
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
        """Whether a signal waits. Also takes SIGTERM back from Lightning, which has a handler of its own."""
        self.waiting = waiting
        for number in self._previous:
            signal.signal(number, self._handle)

    def leave(self, number: int) -> None:
        """Errors: Interrupted, or what the handler before this one raises."""
        previous = self._previous[number]
        if callable(previous) and previous is not signal.default_int_handler:
            previous(number, None)
        raise Interrupted(128 + number)

    def _handle(self, number: int, frame: Any) -> None:
        if not self.waiting or self.number is not None:
            self.leave(number)
        self.number = number
        print(f"{signal.Signals(number).name}: finishing the step and saving; a second one ends at once", flush=True)
