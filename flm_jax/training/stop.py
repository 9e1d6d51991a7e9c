"""Being asked to stop: SIGTERM, as preemption and schedulers send it."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Whether a signal has asked the run to stop.

    A process alone stops after the step that it is at. Of several each may get the signal at another step, or only one
    may; JAX's preemption service then makes out a step that none is behind, at which all of them stop.
    """

    received = False
    _asked = 0

    def asked_for(self) -> bool:
        """Whether the run stops here; all processes ask before every step and every batch of an evaluation."""
        if jax.process_count() > 1 and not self.received:
            # Counted from the start of the process: a signal that came before the first question sets the point to 1.
            self._asked += 1
            self.received = multihost_utils.reached_preemption_sync_point(self._asked)
        return self.received


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[StopRequest]:
    """Turns SIGTERM into a question that the loop asks between steps; the old handler comes back afterwards."""
    request = StopRequest()
    if (
        jax.process_count() > 1
    ):  # the preemption service, which began with the processes' connection, has the signal
        yield request
        return

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
