"""Processes that work on shards, and their results in order."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any

# `function(state, job, advance)`; `advance(n)` says that n more documents are done.
Function = Callable[[Any, Any, Callable[[int], None]], Any]

_state: Any = None
_done: Any = None  # a shared counter of documents

_SECONDS = 0.5  # between two looks at the counter


def num_cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Runs a function on jobs, in processes where there is more than one job and more than one worker.

    Args:
        num_workers: processes.
        state: given to the function with every job; pickled once for each process.
        advance: told how many documents were done since it was last told.
    """

    def __init__(self, num_workers: int, state: Any, advance: Callable[[int], None]) -> None:
        self._num_workers, self._local, self._advance = num_workers, state, advance
        self._pool: ProcessPoolExecutor | None = None
        self._context = multiprocessing.get_context("spawn")
        self._counter = self._context.Value("q", 0)
        self._told = 0
        self._interrupted = False
        self._handler: Any = None

    def __enter__(self) -> "Workers":
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def _interrupt(self, *signal_and_frame: Any) -> None:
        # Noted too: what is raised within a callback of the garbage collector (jax has one) is lost.
        self._interrupted = True
        raise KeyboardInterrupt

    def _check(self) -> None:
        if self._interrupted:
            raise KeyboardInterrupt

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)

    def map(self, function: Function, jobs: Iterator[Any]) -> Iterator[Any]:
        """The results in the order of the jobs, of which few more are taken than there are processes.

        Raises:
            ChildProcessError: a process died.
        """
        first, second = next(jobs, None), next(jobs, None)
        taken = [job for job in (first, second) if job is not None]
        if self._num_workers == 1 or (second is None and self._pool is None):
            for job in _chained(taken, jobs):
                yield function(self._local, job, self._advance_here)
            return
        waiting: deque[Future[Any]] = deque()
        try:
            for job in _chained(taken, jobs):
                waiting.append(self._started().submit(_call, function, job))
                if len(waiting) > self._num_workers:
                    yield self._result(waiting.popleft())
            while waiting:
                yield self._result(waiting.popleft())
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a process that prepares data died, of memory perhaps: lower prepare.num_workers "
                f"({self._num_workers}) or prepare.shard_bytes; the same command goes on where it was. A script that "
                'calls prepare() must do so under `if __name__ == "__main__":`'
            ) from error

    def _advance_here(self, documents: int) -> None:
        self._check()
        self._advance(documents)

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self._num_workers,
                mp_context=self._context,
                initializer=_begin,
                initargs=(self._local, self._counter),
            )
        return self._pool

    def _result(self, future: Future[Any]) -> Any:
        while True:
            self._check()
            try:
                found = future.result(timeout=_SECONDS)
            except NotYet:
                if future.done():  # the job's own error
                    raise
                self._tell()
                continue
            self._tell()
            return found

    def _tell(self) -> None:
        now = self._counter.value
        self._advance(now - self._told)
        self._told = now


def _chained(taken: list[Any], jobs: Iterator[Any]) -> Iterator[Any]:
    while taken:  # not kept: a job holds a shard's text
        yield taken.pop(0)
    yield from jobs


def _begin(state: Any, done: Any) -> None:
    global _state, _done
    _state, _done = state, done
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    parent = multiprocessing.parent_process()
    if parent is not None:
        # A process whose parent was killed would wait for its next job for ever.
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _call(function: Function, job: Any) -> Any:
    def advance(documents: int) -> None:
        with _done.get_lock():
            _done.value += documents

    return function(_state, job, advance)
