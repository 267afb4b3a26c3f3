"""Event loops for async tools: the one that waits for the code that calls them, else one of this process.

The session, client or lock that an async tool uses often belongs to the event loop of the program, and waits for
ever on any other. A run that is awaited leaves that loop free, so its tools run there. A blocking run has no such
loop, or blocks it until it ends: its tools run on a loop that this process keeps in a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import selectors
import sys
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol, TypeVar, TypeVarTuple

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Callable, Iterator

Loop = asyncio.AbstractEventLoop
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_STALLED_SECONDS = 5.0
"""How long nothing but another thread may be able to wake one of our loops before its calls are told."""

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
        loop = None if _free.get() else _loop_behind_anyio()
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


def blocks_a_loop() -> bool:
    """Whether an event loop cannot go on before what runs here returns."""
    return bool(_blocked.get())


def loop_at_hand() -> Loop | None:
    """Return the event loop to run an async tool on: ours, if it runs here, else the one that waits for this."""
    running = _running_loop()
    loop = running if isinstance(running, ToolLoop) and running not in _blocked.get() else _free.get()
    return loop if loop is not None and loop not in _blocked.get() and loop.is_running() else None


class Served(Protocol):
    """What runs on a loop of ours."""

    def stalled(self) -> None:
        """Hear that nothing but another thread can let it go on."""


class ToolLoop(asyncio.SelectorEventLoop):
    """An event loop for async tools, which knows when nothing of its own can wake it any more."""

    def __init__(self) -> None:
        self._calls: set[Served] = set()
        self._in_threads = 0
        super().__init__(_Selector(self))

    @contextlib.contextmanager
    def serving(self, call: Served) -> Iterator[None]:
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


class ToolLoops:
    """The event loops of this process for async tools: one, and further ones while a tool blocks it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: list[ToolLoop] = []
        self._pid = os.getpid()

    def unblocked(self) -> Iterator[Loop]:
        """Yield the loops that nothing blocks that waits for what runs here, then new ones."""
        blocked = _blocked.get()
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


tool_loops = ToolLoops()
