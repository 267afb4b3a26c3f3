"""Calls of the model's code to functions of the host: each in a thread, in a copy of its execute's context."""

from __future__ import annotations

import os
import queue
import sys
import threading
from typing import TYPE_CHECKING, Any

from rlm_dspy.concurrency.async_forms import is_async

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable


class Crew:
    """Threads that run jobs at once, made when they are needed and kept for the next job.

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


def in_thread(job: Callable[[], None]) -> None:
    """Have `job`, which must not raise, run in a thread."""
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

    def start(self, name: str, args: list[Any], kwargs: dict[str, Any], done: Callable[[Any], None]) -> None:
        """Run a tool in a thread; `done` gets what it returned or, as a `Raised`, what it raised."""

        def job() -> None:
            try:
                outcome = self._context.copy().run(self._invoke, name, args, kwargs)
            except BaseException as error:  # noqa: BLE001 (who asked decides what to do with it)
                outcome = Raised(error)
            done(outcome)

        try:
            in_thread(job)
        except RuntimeError as error:  # no thread can be started
            done(Raised(error))


class Raised:
    """What a tool raised."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def value_of(outcome: Any) -> Any:
    """Return what a tool returned.

    Raises:
        Exception: What it raised.
    """
    if isinstance(outcome, Raised):
        raise outcome.error
    return outcome


def described(tools: dict[str, Callable[..., Any]]) -> list[dict[str, Any]]:
    """Return what a worker must know of tools to stand in for them."""
    return [
        {"name": name, "doc": getattr(tool, "__doc__", None) or "", "is_async": is_async(tool)}
        for name, tool in tools.items()
    ]


def message(error: Exception) -> str:
    """Return what an error says; of a KeyError the key itself."""
    if isinstance(error, KeyError) and len(error.args) == 1 and isinstance(error.args[0], str):
        return error.args[0]
    return str(error)
