"""SIGTERM and Ctrl-C as a request that a training answers once its step is finished and saved."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

from .distributed import World

_SAME_CTRL_C_SECONDS = 3.0
"""torchrun passes Ctrl-C on to processes that have received it from the terminal. So soon after the first one, it is
taken for that copy."""


class StopRequest:
    """Whether a signal has asked the training to end."""

    def __init__(self, world: World):
        self.status = 0
        """Exit status to leave with: 128 + the signal's number; 0 as long as there is no request."""
        self._world = world
        self._interrupted_at: float | None = None

    def on_signal(self, number: int, _frame: object) -> None:
        """Note the request. A second Ctrl-C ends the process at once."""
        self.status = self.status or 128 + number
        if number != signal.SIGINT:
            return
        now = time.monotonic()
        if self._interrupted_at is None:
            self._interrupted_at = now
            if self._world.is_first:  # os.write, because the signal may have interrupted a print()
                os.write(2, b"\nstopping: this step is finished and saved first; Ctrl-C once more ends at once\n")
            if self._world.size == 1:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
        elif now - self._interrupted_at >= _SAME_CTRL_C_SECONDS:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)


@contextlib.contextmanager
def stop_requests(world: World) -> Iterator[StopRequest]:
    """Handle SIGTERM and Ctrl-C by a StopRequest for the length of the block.

    Outside the main thread, which alone may install handlers, the request stays empty. An ignored Ctrl-C, as in a
    process that was started in the background, stays ignored.
    """
    request = StopRequest(world)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    if before[signal.SIGINT] is signal.SIG_IGN:
        del before[signal.SIGINT]
    for number in before:
        signal.signal(number, request.on_signal)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
