"""Being asked to stop: SIGTERM, as preemption and schedulers send it."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


class StopRequest:
    """Whether a signal has asked the run to stop."""

    received = False


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[StopRequest]:
    """Turns SIGTERM into a question that the loop asks between steps; the old handler comes back afterwards."""
    request = StopRequest()

    def receive(*_: Any) -> None:
        request.received = True

    try:
        before = signal.signal(signal.SIGTERM, receive)
    except ValueError:  # not the main thread: signals are the caller's business
        yield request
        return
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)
