"""Runs functions in threads that are created on demand and reused.

Starting a thread takes an event loop longer than most cells: `Thread.start` waits until the thread has run.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import queue
import sys
import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

T = TypeVar("T")

_IDLE_SECONDS = 30


class ThreadPool:
    """A pool of threads that run jobs at once. It grows as needed; a thread that was idle for 30 seconds ends.

    They are daemons: a job that never returns does not keep the process from ending.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._idle: queue.SimpleQueue[None] = queue.SimpleQueue()
        """An entry for each idle thread. An interrupt within a Semaphore would leave its lock held."""

    def run(self, job: Callable[[], object]) -> None:
        """Run `job`, which must not raise.

        Raises:
            RuntimeError: If no thread can be started.
        """
        if not self._claimed():
            thread = threading.Thread(target=self._work, name="rlm-call", daemon=True)
            contextvars.Context().run(thread.start)  # it must not keep what the context of its first job holds
        self._jobs.put(job)

    def _work(self) -> None:
        while job := self._next():
            job()
            del job  # and what it holds
            self._idle.put(None)

    def _claimed(self) -> bool:
        """Take one from the idle threads; return whether there was one."""
        with contextlib.suppress(queue.Empty):
            self._idle.get_nowait()
            return True
        return False

    def _next(self) -> Callable[[], object] | None:
        """Wait for a job; None if there was none for too long."""
        while True:
            with contextlib.suppress(queue.Empty):
                return self._jobs.get(timeout=_IDLE_SECONDS)
            if self._claimed():  # else a job that counts on this thread is on its way
                return None


_pool = ThreadPool()


def _new_pool() -> None:
    global _pool  # noqa: PLW0603 (a forked child of the host has none of its threads)
    _pool = ThreadPool()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_new_pool)


def start_job(job: Callable[[], object]) -> None:
    """Run a function that must not raise in a thread.

    Raises:
        RuntimeError: If no thread can be started.
    """
    _pool.run(job)


def run_in_pool(function: Callable[[], T], done: Future[T], name: str = "rlm-call") -> None:
    """Run a function in a thread unless `done` is cancelled first; its result or error is set on `done`.

    So is the RuntimeError if no thread can be started.

    Args:
        function: What to run.
        done: If it is running already, it cannot be cancelled.
        name: The name of the thread meanwhile.
    """

    def job() -> None:
        if done.running() or done.set_running_or_notify_cancel():
            try:
                with _named(name):
                    result = function()
            except BaseException as error:  # noqa: BLE001 (the waiting caller handles it)
                done.set_exception(error)
            else:
                done.set_result(result)

    try:
        start_job(job)
    except RuntimeError as error:
        done.set_exception(error)


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    thread = threading.current_thread()
    before, thread.name = thread.name, name
    try:
        yield
    finally:
        thread.name = before
