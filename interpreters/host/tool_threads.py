"""Runs the host functions that code calls, each in a thread."""

from __future__ import annotations

import os
import queue
import sys
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from rlm_dspy.concurrency.async_forms import is_async

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Future

    from rlm_dspy.interpreters.worker.frames import Tool

T = TypeVar("T")


class Crew:
    """A pool of threads that run jobs at once, created on demand and reused.

    They are daemons: a tool that never returns does not keep the process from ending.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)

    def run(self, job: Callable[[], None]) -> None:
        """Run `job`, which must not raise."""
        if not self._idle.acquire(blocking=False):
            threading.Thread(target=self._work, name="rlm-call", daemon=True).start()
        self._jobs.put(job)

    def _work(self) -> None:
        while True:
            self._jobs.get()()
            self._idle.release()


_crew = Crew()


def _new_crew() -> None:
    global _crew  # noqa: PLW0603 (a forked child of the host has none of its threads)
    _crew = Crew()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_new_crew)


def run_in_crew(function: Callable[[], T], done: Future[T]) -> None:
    """Run a function in a thread unless `done` is cancelled first; its result or error is set on `done`.

    So is the RuntimeError if no thread can be started.
    """

    def job() -> None:
        if done.set_running_or_notify_cancel():
            try:
                result = function()
            except BaseException as error:  # noqa: BLE001 (the waiting caller handles it)
                done.set_exception(error)
            else:
                done.set_result(result)

    try:
        _crew.run(job)
    except RuntimeError as error:
        done.set_exception(error)


def described(tools: Mapping[str, Callable[..., Any]]) -> list[Tool]:
    """Describe tools to a worker, which builds proxies for them."""
    return [
        {"name": name, "doc": getattr(tool, "__doc__", None) or "", "is_async": is_async(tool)}
        for name, tool in tools.items()
    ]


def message(error: Exception) -> str:
    """Return the message of an error; for a KeyError the key itself."""
    if isinstance(error, KeyError) and len(error.args) == 1 and isinstance(error.args[0], str):
        return error.args[0]
    return str(error)
