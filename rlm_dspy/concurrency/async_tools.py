"""Async tools, and modules without a sync form, called by code in other threads.

Each runs on an event loop of `tool_loops`, and ends when nobody waits for it any more.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import inspect
import logging
import threading
from typing import TYPE_CHECKING, Any, Protocol

import dspy

from rlm_dspy.concurrency.tool_loops import Loop, ToolLoop, blocks_a_loop, loop_at_hand, tool_loops
from rlm_dspy.errors import EventLoopBlocked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from contextlib import AbstractContextManager

    from rlm_dspy.errors import LimitExceeded

_BEGIN_SECONDS = 2.0
"""How long a call waits for a loop of ours before it goes to another: a tool may block the first."""
_AWAIT_INSTEAD = "Await the run instead: `await rlm.acall(...)`."
_logger = logging.getLogger("dspy.rlm_dspy")


class AsyncCall:
    """A call of an async tool, which runs on an event loop in a copy of the context that it is started in.

    It can be cancelled at any moment, also while it is started.

    Args:
        tool: The name of the tool.
        awaitable: What it returned.
    """

    def __init__(self, tool: str, awaitable: Awaitable[Any]) -> None:
        self._tool = tool
        self._awaitable = awaitable
        self._future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._task: asyncio.Task[None] | None = None
        self._begun = threading.Event()
        self._begin = threading.Lock()
        """Held once the call has begun, or never will."""
        self._cancelled = False
        self._why: Exception | None = None
        self._blocks_a_loop = False
        self._warned = False

    def start(self) -> None:
        """Start it, once."""
        self._blocks_a_loop = blocks_a_loop()
        if (loop := loop_at_hand()) is not None:
            self._start_on(loop)
            return
        for loop in tool_loops.unblocked():
            self._start_on(loop)
            if self._begun.wait(_BEGIN_SECONDS) or not self._begin.acquire(blocking=False):
                return
            self._begin = threading.Lock()

    def result(self) -> Any:
        """Wait in this thread until the tool has ended, and return what it returned.

        Raises:
            BaseException: What the tool raised, or why the call was cancelled.
        """
        try:
            return self._future.result()
        except concurrent.futures.CancelledError:
            cancelled = concurrent.futures.CancelledError(f"The call of {self._tool!r} was cancelled.")
            raise self._why or cancelled from None

    async def wait(self) -> Any:
        """Wait on the running event loop until the tool has ended, and return what it returned.

        Raises:
            asyncio.CancelledError: If the waiting task was cancelled; so is the call.
            BaseException: What the tool raised, or why the call was cancelled.
        """
        try:
            return await asyncio.wrap_future(self._future)
        except asyncio.CancelledError:
            if self._why is not None:
                raise self._why from None
            raise

    def cancel(self, why: Exception | None = None) -> None:
        """Cancel it, from any thread. Nobody waits for it any more, also while the tool still cleans up.

        Args:
            why: What is raised where the call is waited for.
        """
        self._why, self._cancelled = self._why or why, True
        if self._begin.acquire(blocking=False):
            self._close()
        elif (task := self._task) is not None:
            with contextlib.suppress(RuntimeError):  # its loop was closed meanwhile
                task.get_loop().call_soon_threadsafe(task.cancel)
        self._future.cancel()

    def stalled(self) -> None:
        """Say that nothing but another thread can let this call go on. Called on the loop that it runs on."""
        if self._blocks_a_loop:
            self.cancel(
                EventLoopBlocked(
                    f"The async tool {self._tool!r} waits for what the event loop of the caller should do, and "
                    f"this call blocks that loop. {_AWAIT_INSTEAD}"
                )
            )
        elif not self._warned:
            self._warned = True
            _logger.warning(
                "RLM: the async tool %r waits for another thread. If its session or client belongs to another "
                "event loop, run there: asyncio.run_coroutine_threadsafe(rlm.acall(...), that_loop).",
                self._tool,
            )

    def _start_on(self, loop: Loop) -> None:
        asyncio.run_coroutine_threadsafe(self._run(self._begin), loop)

    async def _run(self, begin: threading.Lock) -> None:
        if not begin.acquire(blocking=False):
            return
        self._task = asyncio.current_task()
        self._begun.set()
        if self._cancelled:  # before there was a task to cancel
            self._close()
            return
        loop = asyncio.get_running_loop()
        try:
            with loop.serving(self) if isinstance(loop, ToolLoop) else contextlib.nullcontext():
                value = await self._awaitable
        except asyncio.CancelledError:
            self._future.cancel()
            raise
        except BaseException as error:  # noqa: BLE001  # also an exit, which would end the whole loop
            self._settle(self._future.set_exception, self._explained(error))
        else:
            self._settle(self._future.set_result, value)

    def _settle(self, how: Callable[[Any], None], outcome: Any) -> None:
        with contextlib.suppress(concurrent.futures.InvalidStateError):  # it was cancelled meanwhile
            how(outcome)

    def _explained(self, error: BaseException) -> BaseException:
        """Return the error; asyncio's own, of what belongs to another loop, with what to do."""
        if type(error) is not RuntimeError or not self._blocks_a_loop:
            return error
        explained = RuntimeError(
            f"{error} (If the tool needs the event loop that this call blocks: {_AWAIT_INSTEAD})"
        )
        return explained.with_traceback(error.__traceback__)

    def _close(self) -> None:
        if inspect.iscoroutine(self._awaitable):
            self._awaitable.close()


def is_async(tool: Callable[..., Any]) -> bool:
    """Return whether a function, or the one in a `dspy.Tool`, gives a coroutine."""
    function = tool.func if isinstance(tool, dspy.Tool) else tool
    return any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))


class Closable(Protocol):
    """What ends calls that are under way; the ledger of a tree of runs is one."""

    @property
    def closed(self) -> LimitExceeded | None:
        """Why it is closed; None while it is open."""

    def told_of_closing(self, tell: Callable[[], object]) -> AbstractContextManager[None]:
        """Call `tell` when it is closed in this scope, at once if it is closed already."""


class AsyncTools:
    """The async tools of a tree of runs: what they wait for ends with its ledger.

    Args:
        ledger: The ledger of the tree.
    """

    def __init__(self, ledger: Closable) -> None:
        self._ledger = ledger
        self._error: EventLoopBlocked | None = None

    def check(self) -> None:
        """Check that no tool waited for an event loop that the run blocks.

        Raises:
            EventLoopBlocked: If one did: the caller must know, not the model.
        """
        if self._error is not None:
            raise self._error

    async def awaited(self, tool: str, awaitable: Awaitable[Any]) -> Any:
        """Await what a tool has returned, on the caller's event loop."""
        with self._under_way(tool, awaitable) as call:
            return await call.wait()

    def for_threads(self, tool: dspy.Tool) -> dspy.Tool:
        """Return a tool that is called like a sync one, from threads: what it returns is awaited if it can be."""

        def call(*args: Any, **kwargs: Any) -> Any:
            returned = tool.func(*args, **kwargs)
            if not inspect.isawaitable(returned):
                return returned
            with self._under_way(tool.name, returned) as under_way:
                return under_way.result()

        functools.update_wrapper(call, tool.func)
        return tool.model_copy(update={"func": call})

    @contextlib.contextmanager
    def _under_way(self, tool: str, awaitable: Awaitable[Any]) -> Iterator[AsyncCall]:
        call = AsyncCall(tool, awaitable)
        try:
            with self._ledger.told_of_closing(lambda: call.cancel(self._ledger.closed)):
                call.start()
                yield call
        except EventLoopBlocked as error:
            self._error = error
            raise
        finally:
            call.cancel()
