"""Requests to stop: a training process that is asked to end finishes its step, saves, and ends in time."""

import signal
import threading
import time
from types import FrameType

_REQUESTS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


_ONE_REQUEST = 5.0
"""Seconds in which signals are one request: schedulers signal every process, and launchers pass the signal on."""


class StopRequest:
    """Becomes true when the process is asked to end (SIGTERM, SIGUSR1, SIGINT).

    A later request ends the process at once, and so does the deadline that the first one sets. The deadline is left to
    the kernel, which does not wait for Python: the lock of its interpreter may be held by what hangs.

    Only a process's main thread can take signals. Anywhere else, as under Ray Train, this never becomes true.

    Args:
        seconds: the time that the process has after the first request.
        one_request: seconds in which further signals belong to the first request.
    """

    def __init__(self, seconds: float, one_request: float = _ONE_REQUEST) -> None:
        self._asked: float | None = None
        self._seconds, self._one_request = seconds, one_request
        if threading.current_thread() is threading.main_thread():
            for number in _REQUESTS:
                signal.signal(number, self._handle)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._asked is None:
            self._asked = time.monotonic()
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, self._seconds)
        elif time.monotonic() - self._asked > self._one_request:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def __call__(self) -> bool:
        """Whether a stop was asked for."""
        return self._asked is not None
