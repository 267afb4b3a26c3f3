"""Tracks which caller waits for the work in a context, and cancels the work when nobody waits any more.

Work often leaves the thread of its caller: a cell runs in its own thread, a tool in another, a request on an
event loop. How it may wait there depends on who waits for it, and `WaitScope` says so. Scopes are entered by
`with`, and inherited by whatever copies the context, as all threads of this package do.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import dspy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Loop = asyncio.AbstractEventLoop
Why = TypeVar("Why", bound=Exception)


class Cancellation(Generic[Why]):
    """Cancels the work that runs under it: of a run at its time-out, of a cell when it is interrupted.

    Attributes:
        why: Raised in waiting callers; None while nothing is cancelled.
    """

    def __init__(self) -> None:
        self.why: Why | None = None
        self._callbacks: dict[object, Callable[[Why], object]] = {}
        self._lock = threading.Lock()

    def cancel(self, why: Why) -> None:
        """Notify all current and later waiters, from any thread."""
        with self._lock:
            self.why = why
            callbacks = list(self._callbacks.values())
        for tell in callbacks:
            tell(why)

    def take_back(self) -> None:
        """Do not cancel callers that start to wait from now on."""
        with self._lock:
            self.why = None

    @contextlib.contextmanager
    def telling(self, tell: Callable[[Why], object]) -> Iterator[None]:
        """Call `tell`, from any thread, if this is or was cancelled in this scope."""
        key = object()
        with self._lock:
            self._callbacks[key], why = tell, self.why
        try:
            if why is not None:
                tell(why)
            yield
        finally:
            with self._lock:
                del self._callbacks[key]


@dataclass(frozen=True)
class WaitScope:
    """Describes who waits for the work in this context, and until when.

    Attributes:
        loop: The event loop that waits for this thread and serves others meanwhile; async tools run there.
        requests: Whether model requests run on `loop` too: it awaits the run or streams its replies.
        stream: Where DSPy streams replies from `loop` to.
        blocked: The event loops that are blocked until the work here returns.
        cancellations: What can cancel it.
    """

    loop: Loop | None = None
    requests: bool = False
    stream: Any = None
    blocked: frozenset[Loop] = frozenset()
    cancellations: tuple[Cancellation[Any], ...] = ()

    @property
    def free_loop(self) -> Loop | None:
        """The event loop to await something on; None if there is none, or it is blocked."""
        loop = self.loop
        return loop if loop is not None and loop not in self.blocked and loop.is_running() else None


_NOBODY = WaitScope()
_scope: ContextVar[WaitScope] = ContextVar("wait_scope", default=_NOBODY)


wait_scope = _scope.get
"""Return the active scope."""


@contextlib.contextmanager
def _changed(**changes: Any) -> Iterator[None]:
    token = _scope.set(replace(_scope.get(), **changes))
    try:
        yield
    finally:
        _scope.reset(token)


@contextlib.contextmanager
def awaited_on(loop: Loop) -> Iterator[None]:
    """Enter the scope of a thread whose result `loop` awaits."""
    with _changed(loop=loop, requests=True, blocked=_scope.get().blocked - {loop}), handing_over_stream():
        yield


@contextlib.contextmanager
def blocking() -> Iterator[None]:
    """Enter the scope of a blocking call: an event loop that runs here is blocked.

    A loop of anyio, which made this thread for `dspy.asyncify` or FastAPI, is not blocked.
    """
    scope = _scope.get()
    changes: dict[str, Any] = {}
    if (running := running_loop()) is not None:
        changes = {"blocked": scope.blocked | {running}}
    elif scope.loop is None and (behind := _loop_behind_anyio()) is not None:
        changes = {"loop": behind, "requests": dspy.settings.send_stream is not None}
    with _changed(**changes):
        yield


@contextlib.contextmanager
def handing_over_stream() -> Iterator[None]:
    """Stream replies only from the loop of the scope: DSPy cannot stream from threads of this package."""
    stream = dspy.settings.send_stream
    with _changed(stream=stream), contextlib.nullcontext() if stream is None else dspy.context(send_stream=None):
        yield


@contextlib.contextmanager
def cancelled_by(cancellation: Cancellation[Any]) -> Iterator[None]:
    """Cancel the work of this scope also by `cancellation`, in addition to those of outer scopes."""
    others = _scope.get().cancellations
    with _changed(cancellations=others if cancellation in others else (*others, cancellation)):
        yield


@contextlib.contextmanager
def if_cancelled(tell: Callable[[Exception], object]) -> Iterator[None]:
    """Call `tell` with the reason, from any thread, when nobody waits any more for the work in this scope."""
    with contextlib.ExitStack() as stack:
        for each in _scope.get().cancellations:
            stack.enter_context(each.telling(tell))
        yield


def abandoned() -> bool:
    """Return whether nobody waits any more for the work in this scope."""
    return any(each.why is not None for each in _scope.get().cancellations)


def pause(seconds: float) -> None:
    """Sleep, but stop when nobody waits any more for the work in this scope."""
    over = threading.Event()
    with if_cancelled(lambda _: over.set()):
        over.wait(seconds)


def running_loop() -> Loop | None:
    """Return the event loop that runs in this thread."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _loop_behind_anyio() -> Loop | None:
    if "anyio" not in sys.modules:
        return None
    import anyio.from_thread  # noqa: PLC0415  # a program with such a thread has imported it

    try:
        return anyio.from_thread.run_sync(asyncio.get_running_loop)
    except RuntimeError:  # a thread made elsewhere
        return None
