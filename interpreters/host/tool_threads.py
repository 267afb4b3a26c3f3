"""Runs the host functions that code calls, each in a thread with a copy of the context of its `execute`."""

from __future__ import annotations

import os
import queue
import sys
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from rlm_dspy.concurrency.async_forms import is_async

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable, Mapping

    from rlm_dspy.interpreters.worker.frames import Tool
    from rlm_dspy.interpreters.worker.wire import JSON

T = TypeVar("T")


class Crew:
    """A pool of threads that run jobs at once, created on demand and reused.

    They are daemons: a tool that never returns does not keep the process from ending.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)

    def run(self, job: Callable[[], None]) -> None:
        """Have `job` run. It must not raise."""
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
    """Run a function in a thread unless `done` is cancelled first; set its result or error on `done`.

    Raises:
        RuntimeError: If no thread can be started.
    """

    def job() -> None:
        if done.set_running_or_notify_cancel():
            try:
                result = function()
            except BaseException as error:  # noqa: BLE001 (who waits for it decides what to do with it)
                done.set_exception(error)
            else:
                done.set_result(result)

    _crew.run(job)


class Caller:
    """Runs the calls of one execute.

    Args:
        invoke: Runs a tool by its name, positional and named arguments.
        context: The context of the execute; each call gets a copy.
    """

    def __init__(
        self, invoke: Callable[[str, list[Any], dict[str, Any]], Any], context: contextvars.Context
    ) -> None:
        self._invoke = invoke
        self._context = context

    def start(
        self, name: str, args: list[JSON], kwargs: dict[str, JSON], answer: Callable[[Future[Any]], None]
    ) -> None:
        """Run a tool in a thread; `answer` gets what it returned or raised."""
        done: Future[Any] = Future()
        done.add_done_callback(answer)
        try:
            run_in_crew(lambda: self._context.copy().run(self._invoke, name, args, kwargs), done)
        except RuntimeError as error:
            done.set_exception(error)


def described(tools: Mapping[str, Callable[..., Any]]) -> list[Tool]:
    """Describe tools to a worker, which builds stand-ins for them."""
    return [
        {"name": name, "doc": getattr(tool, "__doc__", None) or "", "is_async": is_async(tool)}
        for name, tool in tools.items()
    ]


def message(error: Exception) -> str:
    """Return what an error says; of a KeyError the key itself."""
    if isinstance(error, KeyError) and len(error.args) == 1 and isinstance(error.args[0], str):
        return error.args[0]
    return str(error)
