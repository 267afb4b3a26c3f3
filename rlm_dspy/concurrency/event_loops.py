"""Runs awaitables on an event loop in another thread, and blocks the caller until they finish.

The session, client or lock of an async tool often belongs to the event loop of the program and hangs on any
other. A run that is awaited leaves that loop free, so what its code awaits runs there. A blocking run has no such
loop, or blocks it: what it awaits runs on a `background_loop`, which this process keeps in a thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import copy
import functools
import inspect
import itertools
import logging
import os
import selectors
import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar, TypeVarTuple

import dspy

from rlm_dspy.concurrency.wait_scope import Loop, blocking, if_cancelled, wait_scope
from rlm_dspy.errors import EventLoopBlocked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_BEGIN_SECONDS = 2.0
"""Seconds until a background loop must start a call: an async tool that never awaits may block the loop."""
_STALLED_SECONDS = 5.0
"""Seconds that a background loop may have nothing to wake it but other threads before its calls are notified."""
_AWAIT_INSTEAD = "Await the run instead: `await rlm.acall(...)`."
_logger = logging.getLogger("dspy.rlm_dspy")


class LoopCall(Generic[T]):
    """A call of an async tool or module on an event loop in another thread, in a copy of the context.

        LoopCall(session.fetch(page), "fetch").result()

    It is cancelled when nobody waits for it any more: at its time-out, by Ctrl-C, or by a `Cancellation` of
    the scope.

    Args:
        awaitable: What to await, once.
        name: The name of the async tool, for messages.
    """

    def __init__(self, awaitable: Awaitable[T], name: str = "") -> None:
        self._awaitable = awaitable
        self._name = name
        self._future: concurrent.futures.Future[Callable[[], T]] = concurrent.futures.Future()
        self._claim = threading.Lock()
        """Acquired by the loop that runs the awaitable, or by `_cancel` if none will."""
        self._begun = threading.Event()
        self._task: asyncio.Task[Any] | None = None
        self._runs_on: Loop | None = None
        self._is_over = False
        self._why: Exception | None = None
        self._scope = wait_scope()

    def result(self, loop: Loop | None = None, seconds: float | None = None) -> T:
        """Start the call, block until it ends, and return its result.

        Args:
            loop: Where to run it; default: the free loop of the scope, else a background loop.
            seconds: The time-out; None for none.

        Raises:
            TimeoutError: If it does not end in time.
            EventLoopBlocked: If it waits for an event loop that this call blocks.
            concurrent.futures.CancelledError: If the loop cancelled it.
            BaseException: What it raises, or why it was cancelled.
        """
        with blocking() if loop is None else contextlib.nullcontext(), if_cancelled(self._cancel):
            self._scope = wait_scope()
            try:
                self._start(loop or self._scope.free_loop)
                outcome = result_within(self._future, seconds)
            except concurrent.futures.CancelledError:
                cancelled = concurrent.futures.CancelledError(f"The call of {self._name!r} was cancelled.")
                raise copy.copy(self._why) or cancelled from None
            finally:
                self._cancel()
        return outcome()

    def _start(self, loop: Loop | None) -> None:
        """Begin the call on this loop, else on the first background loop that is not held up by another call."""
        futures: dict[Loop | None, concurrent.futures.Future[Callable[[], T]]] = {}
        for number in itertools.count():
            chosen = loop or background_loop("rlm-tools", number)
            if loop is not None or chosen not in self._scope.blocked:
                self._future = futures[chosen] = asyncio.run_coroutine_threadsafe(self._run(chosen), chosen)
                if self._is_over:  # cancelled meanwhile
                    self._future.cancel()
                if loop is not None or self._is_over or self._begun.wait(_BEGIN_SECONDS):
                    self._future = futures.get(self._runs_on, self._future)  # an earlier loop may have begun it
                    return

    def _cancel(self, why: Exception | None = None) -> None:
        self._why = self._why or why
        self._is_over = True
        if self._task is not None and not self._task.done():  # before the caller goes on
            with contextlib.suppress(RuntimeError):  # its loop was closed
                self._task.get_loop().call_soon_threadsafe(self._task.cancel)
        self._future.cancel()
        if self._claim.acquire(blocking=False) and inspect.iscoroutine(self._awaitable):
            self._awaitable.close()

    async def _run(self, loop: Loop) -> Callable[[], T]:
        """Return what returns the result or raises the error, unless another loop runs it or it was cancelled."""
        if not self._claim.acquire(blocking=False):
            raise asyncio.CancelledError
        self._task, self._runs_on = asyncio.current_task(), loop
        self._begun.set()
        stream = self._scope.stream
        streaming = stream is not None and loop is self._scope.loop
        listeners = loop.listeners if isinstance(loop, BackgroundLoop) and self._name else set()
        listeners.add(self._stalled)
        try:
            with dspy.context(send_stream=stream) if streaming else contextlib.nullcontext():
                value = await self._awaitable
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  # also SystemExit, which would end the loop for everybody
            return functools.partial(_raise, self._explained(error))
        else:
            return lambda: value
        finally:
            listeners.discard(self._stalled)

    def _explained(self, error: BaseException) -> BaseException:
        """Return the error; add the fix to asyncio's error about an object of another loop."""
        if type(error) is not RuntimeError or not self._scope.blocked:
            return error
        explained = RuntimeError(
            f"{error} (If the tool needs the event loop that this call blocks: {_AWAIT_INSTEAD})"
        )
        return explained.with_traceback(error.__traceback__)

    def _stalled(self) -> None:
        """Cancel or warn: only another thread can let this call continue. Called on the loop that it runs on."""
        if self._scope.blocked:
            tool = f"The async tool {self._name!r}"
            self._cancel(
                EventLoopBlocked(
                    f"{tool} waits for the event loop of the caller, which this call blocks. {_AWAIT_INSTEAD}"
                )
            )
        else:
            _logger.warning(
                "RLM: the async tool %r waits for another thread. If its session or client belongs to another "
                "event loop, run there: asyncio.run_coroutine_threadsafe(rlm.acall(...), that_loop).",
                self._name,
            )


def _raise(error: BaseException) -> Any:
    raise error


def result_within(future: concurrent.futures.Future[T], seconds: float | None) -> T:
    """Return the result of a future, with a time-out.

    Raises:
        TimeoutError: If there is none in time.
        BaseException: The exception of the future.
    """
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():  # the future's own error
            raise
        raise TimeoutError(f"There was no reply within {seconds:.3g} seconds.") from None


class BackgroundLoop(asyncio.SelectorEventLoop):
    """An event loop in its own daemon thread, which detects when it is blocked.

    A loop has stalled if no timer, no file and none of its worker threads can wake it: only another thread can.

    Args:
        name: The name of the thread.

    Attributes:
        listeners: Called once each when the loop has stalled.
        workers: The number of its worker threads.
    """

    def __init__(self, name: str) -> None:
        self.listeners: set[Callable[[], None]] = set()
        self.workers = 0
        super().__init__(_StallSelector(self))
        threading.Thread(target=self.run_forever, name=name, daemon=True).start()

    def run_in_executor(
        self, executor: concurrent.futures.Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Run a function in a thread of the executor, like `asyncio.to_thread`."""

        def left(_: object) -> None:
            self.workers -= 1

        future: asyncio.Future[T] = super().run_in_executor(executor, func, *args)
        self.workers += 1
        future.add_done_callback(left)
        return future


class _StallSelector(selectors.DefaultSelector):
    def __init__(self, loop: BackgroundLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        own, loop = 1, self._loop  # the pipe by which other threads wake the loop
        if timeout is not None or len(self.get_map()) > own or loop.workers or not loop.listeners:
            return super().select(timeout)
        ready = super().select(_STALLED_SECONDS)
        while not ready and loop.listeners:
            loop.listeners.pop()()
        return ready


_background: dict[tuple[int, str, int], BackgroundLoop] = {}
_making = threading.Lock()


def background_loop(use: str, number: int = 0) -> BackgroundLoop:
    """Return the event loop of this process for a purpose: the first one, or another while that is blocked."""
    with _making:
        key = (os.getpid(), use, number)  # a forked process has no threads for the loops of its parent
        if key not in _background:
            _background[key] = BackgroundLoop(use)
        return _background[key]
