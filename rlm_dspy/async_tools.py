"""Async tools, and modules without a sync form: each runs on the event loop that waits for the code that calls it.

The session, client or lock that an async tool uses often belongs to the event loop of the program, and waits for
ever on any other. A run that is awaited leaves that loop free, so its tools run there. A blocking run has no such
loop, or blocks it until it ends: its tools run on a loop that this process keeps in a thread of its own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import inspect
import itertools
import logging
import os
import selectors
import sys
import threading
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

import dspy

from rlm_dspy.errors import EventLoopBlocked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from rlm_dspy.ledger import Ledger

Loop = asyncio.AbstractEventLoop
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_BEGIN_SECONDS = 2.0
"""How long a call waits for one of our loops before it goes to another: a tool may block the first."""
_STALLED_SECONDS = 5.0
"""How long nothing but another thread may be able to wake one of our loops before somebody is told."""
_AWAIT_INSTEAD = "Await the run instead: `await rlm.acall(...)`."
_logger = logging.getLogger("dspy.rlm_dspy")

_free: ContextVar[Loop | None] = ContextVar("_free", default=None)
"""The event loop that waits for what runs here and is free meanwhile; None if none does."""
_blocked: ContextVar[tuple[Loop, ...]] = ContextVar("_blocked", default=())
"""The event loops that cannot go on before what runs here returns."""


@contextlib.contextmanager
def awaited_on(loop: Loop) -> Iterator[None]:
    """Run async tools on `loop`, which stays free, if they are called in a copy of this scope's context."""
    free = _free.set(loop)
    blocked = _blocked.set(tuple(each for each in _blocked.get() if each is not loop))
    try:
        yield
    finally:
        _free.reset(free)
        _blocked.reset(blocked)


@contextlib.contextmanager
def blocking() -> Iterator[None]:
    """Keep async tools off the event loop that runs in this thread, if one does: this scope blocks it."""
    running = _running_loop()
    if running is None:
        loop = _free.get() or _loop_behind_anyio()
        with contextlib.nullcontext() if loop is None else awaited_on(loop):
            yield
        return
    token = _blocked.set((*_blocked.get(), running))
    try:
        yield
    finally:
        _blocked.reset(token)


def _running_loop() -> Loop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _loop_behind_anyio() -> Loop | None:
    """Return the event loop that waits for this thread if anyio made it, as `dspy.asyncify` and FastAPI do."""
    if "anyio" not in sys.modules:
        return None
    import anyio.from_thread  # noqa: PLC0415  # whoever has such a thread has loaded it

    try:
        loop: Loop = anyio.from_thread.run_sync(asyncio.get_running_loop)
    except RuntimeError:  # a thread that somebody else made
        return None
    return loop


def _free_loop() -> Loop | None:
    loop = _free.get()
    return loop if loop is not None and loop not in _blocked.get() and loop.is_running() else None


@dataclass(frozen=True)
class _Ended:
    """How a tool ended, unless it raised an `Exception`.

    Attributes:
        value: What it returned.
        interrupt: The KeyboardInterrupt or SystemExit that it raised: in a task it would end the whole loop.
    """

    value: Any = None
    interrupt: BaseException | None = None

    def result(self) -> Any:
        """Return what the tool returned, or raise what it raised."""
        if self.interrupt is not None:
            raise self.interrupt
        return self.value


class AsyncCall:
    """A call of an async tool, which runs on an event loop in a copy of the context that it is started in.

    Args:
        tool: The name of the tool.
        awaitable: What it returned.

    Attributes:
        tool: The name of the tool.
    """

    def __init__(self, tool: str, awaitable: Awaitable[Any]) -> None:
        self.tool = tool
        self._awaitable = awaitable
        self._why: Exception | None = None
        self._cancelled = False
        self._stalled = False
        self._begin = threading.Lock()
        """Held once the call has begun, or never will."""
        self._begun = threading.Event()
        self._blocks = False
        self._future: concurrent.futures.Future[_Ended] = concurrent.futures.Future()

    def start(self) -> None:
        """Start it, once."""
        self._blocks = bool(_blocked.get())
        self._future = self._started()
        if self._cancelled:  # meanwhile
            self._future.cancel()

    def result(self) -> Any:
        """Wait in this thread until the tool has ended, and return what it returned.

        Raises:
            BaseException: What the tool raised, or why the call was cancelled.
        """
        try:
            return self._future.result().result()
        except concurrent.futures.CancelledError:
            raise self._why_cancelled() from None

    async def wait(self) -> Any:
        """Wait on the running event loop until the tool has ended, and return what it returned.

        Raises:
            asyncio.CancelledError: If the waiting task was cancelled; so is the call.
            BaseException: What the tool raised, or why the call was cancelled.
        """
        try:
            return (await asyncio.wrap_future(self._future)).result()
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
        self._future.cancel()

    def stalled(self) -> None:
        """Say that nothing but another thread can let this call go on. Called on the loop that it runs on."""
        if self._blocks:
            self.cancel(
                EventLoopBlocked(
                    f"The async tool {self.tool!r} waits for what the event loop of the caller should do, and "
                    f"this call blocks that loop. {_AWAIT_INSTEAD}"
                )
            )
        elif not self._stalled:
            self._stalled = True
            _logger.warning(
                "RLM: the async tool %r waits for another thread. If its session or client belongs to another "
                "event loop, run there: asyncio.run_coroutine_threadsafe(rlm.acall(...), that_loop).",
                self.tool,
            )

    def _started(self) -> concurrent.futures.Future[_Ended]:
        running, blocked = _running_loop(), _blocked.get()
        loop = running if isinstance(running, ToolLoop) and running not in blocked else _free_loop()
        if loop is not None:
            return asyncio.run_coroutine_threadsafe(self._run(self._begin), loop)
        for loop in _loops.besides(blocked):
            future = asyncio.run_coroutine_threadsafe(self._run(self._begin), loop)
            if self._begun.wait(_BEGIN_SECONDS) or not self._begin.acquire(blocking=False):
                break
            future.cancel()
            self._begin = threading.Lock()
        return future

    async def _run(self, begin: threading.Lock) -> _Ended:
        if not begin.acquire(blocking=False):
            return _Ended()
        self._begun.set()
        loop = asyncio.get_running_loop()
        try:
            with loop.serving(self) if isinstance(loop, ToolLoop) else contextlib.nullcontext():
                return _Ended(await self._awaitable)
        except (KeyboardInterrupt, SystemExit) as interrupt:
            return _Ended(interrupt=interrupt)
        except BaseException as error:
            if self._cancelled:  # nobody asks any more
                return _Ended()
            if self._blocks and type(error) is RuntimeError:  # asyncio's own, of what belongs to another loop
                raise RuntimeError(
                    f"{error} (If the tool needs the event loop that this call blocks: {_AWAIT_INSTEAD})"
                ) from error
            raise

    def _close(self) -> None:
        if inspect.iscoroutine(self._awaitable):
            self._awaitable.close()

    def _why_cancelled(self) -> Exception:
        return self._why or concurrent.futures.CancelledError(f"The call of the tool {self.tool!r} was cancelled.")


class ToolLoop(asyncio.SelectorEventLoop):
    """An event loop for async tools, which knows when nothing of its own can wake it any more."""

    def __init__(self) -> None:
        self._calls: set[AsyncCall] = set()
        self._in_threads = 0
        super().__init__(_Selector(self))

    @contextlib.contextmanager
    def serving(self, call: AsyncCall) -> Iterator[None]:
        """Tell `call` if the loop stalls in this scope."""
        self._calls.add(call)
        try:
            yield
        finally:
            self._calls.discard(call)

    @property
    def waits_for_others(self) -> bool:
        """Whether calls are under way, and none of them in a thread that the loop itself has given work to."""
        return bool(self._calls) and not self._in_threads

    def stalled(self) -> None:
        """Tell each call."""
        for call in list(self._calls):
            call.stalled()

    def run_in_executor(
        self, executor: concurrent.futures.Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Run a function in a thread, and know of it."""
        future: asyncio.Future[T] = super().run_in_executor(executor, func, *args)
        self._in_threads += 1

        def left(_: object) -> None:
            self._in_threads -= 1

        future.add_done_callback(left)
        return future


class _Selector(selectors.DefaultSelector):
    """Looks whether its loop waits without a time and without a file: then only another thread can wake it."""

    def __init__(self, loop: ToolLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for files, and no longer than that."""
        own = 1  # the pipe by which other threads wake the loop
        if timeout is not None or len(self.get_map()) > own or not self._loop.waits_for_others:
            return super().select(timeout)
        ready = super().select(_STALLED_SECONDS)
        if not ready:
            self._loop.stalled()
        return ready


def is_async(tool: Callable[..., Any]) -> bool:
    """Return whether a function, or the one in a `dspy.Tool`, gives a coroutine."""
    function = tool.func if isinstance(tool, dspy.Tool) else tool
    return any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))


class _Loops:
    """The event loops of this process for async tools: one, and further ones while a tool blocks it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: list[ToolLoop] = []
        self._pid = os.getpid()

    def besides(self, blocked: tuple[Loop, ...]) -> Iterator[Loop]:
        """Yield the loops that are not blocked, then new ones."""
        for number in itertools.count():
            loop = self._numbered(number)
            if loop not in blocked:
                yield loop

    def _numbered(self, number: int) -> ToolLoop:
        with self._lock:
            if self._pid != os.getpid():  # a forked process has no threads for them
                self._made, self._pid = [], os.getpid()
            while len(self._made) <= number:
                self._made.append(ToolLoop())
                threading.Thread(target=self._made[-1].run_forever, name="rlm-tools", daemon=True).start()
            return self._made[number]


_loops = _Loops()


class AsyncTools:
    """The async tools of a tree of runs: what they wait for ends with its ledger.

    Args:
        ledger: The ledger of the tree.
    """

    def __init__(self, ledger: Ledger) -> None:
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
