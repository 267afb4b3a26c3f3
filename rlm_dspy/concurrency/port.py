"""How the loop reaches the outside: one coroutine, driven without waiting or on an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import dspy

from rlm_dspy.concurrency.event_loops import Elsewhere, can_be_awaited, can_share_a_loop, own_loop
from rlm_dspy.concurrency.timeouts import in_time
from rlm_dspy.concurrency.tool_loops import awaited_on, blocking

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

T = TypeVar("T")

_STOP_SECONDS = 3.0
"""How long a cancelled run waits for its code to stop."""
_LOOK_SECONDS = 0.01
_loop: ContextVar[asyncio.AbstractEventLoop | None] = ContextVar("_loop", default=None)
"""The event loop that waits for what runs here, in a thread of its own; None if nothing waits on a loop."""
_stream: ContextVar[Any] = ContextVar("_stream", default=None)
"""Where replies are streamed to from that loop: DSPy can do it there, but not in threads of ours."""


class Port(Protocol):
    """What the loop may wait for."""

    async def predict(self, module: dspy.Module, seconds: float | None = None, /, **inputs: Any) -> Any:
        """Call a DSPy module, for at most so many seconds where a call can be cut short."""

    async def run(self, function: Callable[..., T], *args: Any, stop: Callable[[], object] | None = None) -> T:
        """Call a function that may take long: the model's code, starting and closing an interpreter.

        `stop` makes it return early; it is called, from another thread, if nobody waits for it any more.
        """


class Blocking:
    """Calls straight through. A coroutine over this port never waits, so `drive` runs it to its end."""

    async def predict(self, module: dspy.Module, seconds: float | None = None, /, **inputs: Any) -> Any:
        """Call a DSPy module.

        Raises:
            TimeoutError: If it took longer. It was cancelled, if it can be (`can_share_a_loop`); else its reply,
                should it still come, goes to nobody.
        """
        if seconds is None:
            return module(**inputs)
        if can_share_a_loop(module):
            return Elsewhere(own_loop(), lambda: module.acall(**inputs)).result(seconds)
        streaming = _streaming_loop()
        if streaming is not None and can_be_awaited(module):
            return Elsewhere(streaming, lambda: module.acall(**inputs)).result(seconds)
        with _in_threads(None):
            return in_time(lambda: module(**inputs), seconds)

    async def run(self, function: Callable[..., T], *args: Any, stop: Callable[[], object] | None = None) -> T:
        """Call a function."""
        # Any other loop further out than this one may be waiting for this very call.
        with blocking(), _in_threads(_streaming_loop()):
            return function(*args)


class Awaiting:
    """Awaits modules, and gives each long function a thread of its own in the caller's context.

    Not a pool: 200 runs may be inside their code at once, and a thread that never ends (code that hangs in
    this process) must not keep the program from exiting.
    """

    async def predict(self, module: dspy.Module, seconds: float | None = None, /, **inputs: Any) -> Any:
        """Await a DSPy module.

        Raises:
            TimeoutError: If it took longer; it was cancelled.
        """
        return await asyncio.wait_for(module.acall(**inputs), seconds)

    async def run(self, function: Callable[..., T], *args: Any, stop: Callable[[], object] | None = None) -> T:
        """Run a function in a thread and await its result.

        If the awaiting task is cancelled, the function is stopped and waited for; but not for long, if it does not
        stop: its result is dropped then.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        with awaited_on(loop), _in_threads(loop):
            inside = contextvars.copy_context()

        def work() -> None:
            try:
                result = inside.run(function, *args)
            except BaseException as error:  # noqa: BLE001  # whatever it is belongs to the awaiting task
                settle(future.set_exception, error)
            else:
                settle(future.set_result, result)

        def settle(how: Callable[[Any], None], value: Any) -> None:
            def unless_done() -> None:
                if not future.done():
                    how(value)

            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile; nobody waits any more
                loop.call_soon_threadsafe(unless_done)

        thread = threading.Thread(target=work, name="rlm-execution", daemon=True)
        thread.start()
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if stop is not None:
                threading.Thread(target=inside.copy().run, args=(stop,), name="rlm-stop", daemon=True).start()
            await _ended(thread, _STOP_SECONDS)
            future.cancel()
            if future.done() and not future.cancelled():
                future.exception()  # it is looked at, so that asyncio does not warn of it
            raise


def waiting_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that awaits what runs in this thread; None in a blocking run.

    What code asks for in an awaited run is done there, so that cancelling the run cancels it.
    """
    return _loop.get()


async def as_streamed(awaited: Callable[[], Awaitable[T]]) -> T:
    """Await something on `waiting_loop`, with its replies streamed if the run's are."""
    stream = _stream.get()
    if stream is None:
        return await awaited()
    with dspy.context(send_stream=stream):
        return await awaited()


@contextlib.contextmanager
def _in_threads(loop: asyncio.AbstractEventLoop | None) -> Iterator[None]:
    """Do what may reach threads of ours in this scope: what they ask is streamed only if it is asked on a loop."""
    stream = dspy.settings.send_stream
    tokens = _loop.set(loop), _stream.set(stream if loop is not None else None)
    try:
        with contextlib.nullcontext() if stream is None else dspy.context(send_stream=None):
            yield
    finally:
        _loop.reset(tokens[0])
        _stream.reset(tokens[1])


def _streaming_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop to which replies are streamed from this thread, which that loop has made."""
    if dspy.settings.send_stream is None:
        return None
    import anyio.from_thread  # noqa: PLC0415  # whoever streams has loaded it

    try:
        return anyio.from_thread.run_sync(asyncio.get_running_loop)
    except RuntimeError:  # a thread that somebody else has made
        return None


async def _ended(thread: threading.Thread, seconds: float) -> None:
    """Wait until a thread has ended, but no longer than that, and also if one is cancelled again meanwhile."""
    until = time.monotonic() + seconds
    while thread.is_alive() and time.monotonic() < until:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(_LOOK_SECONDS)


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine over a `Blocking` port to its end, inside a running event loop or not.

    Raises:
        RuntimeError: If the coroutine waits for something; over a `Blocking` port it does not.
    """
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise RuntimeError("This coroutine waited, which one over a Blocking port must not do.")
