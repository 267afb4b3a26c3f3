"""Lets one coroutine serve both `forward` and `aforward`: its `Port` either blocks or awaits.

The loop and everything under it are `async def`s that never name `asyncio`: they `await port.predict(...)` for a
model and `await port.run(...)` for code. `Blocking` does the work before it returns, so that a coroutine over it
never suspends: one `send(None)` runs it to its end (`drive`), in the caller's thread, inside a running event loop
or not. `Awaiting` suspends until the work is done elsewhere, so that its event loop serves others meanwhile.

    async def answer(port: Port) -> str:
        found = await port.predict(predictor, question="?")
        return await port.run(repl.execute, found.code)

    drive(answer(Blocking()))  # in forward
    await answer(Awaiting())  # in aforward

A blocking run stays in its caller's thread rather than on an event loop behind it: Ctrl-C lands in the code that
runs, tools keep the thread that their connections belong to, a fork finds no thread of ours, and a sub-call needs
no switch of threads. What may have to be interrupted leaves that thread: for an event loop if the LM has an
async form (`LoopCall`), where the request can be cancelled; else for a thread (`call_with_timeout`), which can
only be abandoned.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import dspy

from rlm_dspy.concurrency.async_forms import can_be_awaited, can_be_streamed, can_share_a_loop
from rlm_dspy.concurrency.event_loops import LoopCall, background_loop
from rlm_dspy.concurrency.timeouts import await_in_thread, call_with_timeout
from rlm_dspy.concurrency.wait_scope import Loop, handing_over_stream, wait_scope
from rlm_dspy.events import chunks_are_heard

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

_STOP_SECONDS = 3.0
"""Seconds that a cancelled run waits for its code to stop."""


class Port(Protocol):
    """The calls that a run waits for."""

    async def predict(self, module: dspy.Module, seconds: float | None = None, /, **inputs: Any) -> Any:
        """Call a DSPy module.

        Args:
            module: What to call.
            seconds: The time-out; None for none.
            **inputs: Its inputs.

        Raises:
            TimeoutError: If it takes longer. It is cancelled if its LMs have an async form, else abandoned.
        """

    async def run(self, function: Callable[..., T], *args: Any, stop: Callable[[], object] | None = None) -> T:
        """Call a slow function, such as running the model's code or starting an interpreter.

        Args:
            function: What to call.
            *args: Its arguments.
            stop: Makes the function return early. Called from another thread when the run is cancelled.
        """


class Blocking:
    """A port that finishes the work before it returns."""

    async def predict(self, module: dspy.Module, seconds: float | None = None, /, **inputs: Any) -> Any:
        """Call a DSPy module in this thread, or elsewhere if its time is limited."""
        if (loop := _loop_to_stream_on(module)) is None:
            if seconds is None:
                return module(**inputs)
            if (loop := loop_for(module, timed=True)) is None:
                return call_with_timeout(lambda: module(**inputs), seconds)
        return LoopCall(module.acall(**inputs)).result(loop, seconds)

    async def run(self, function: Callable[..., T], *args: Any, stop: Callable[[], object] | None = None) -> T:
        """Call a function in this thread, where Ctrl-C stops it."""
        with handing_over_stream():
            return function(*args)


class Awaiting:
    """A port that suspends until the work is done: modules on the running event loop, functions in threads."""

    async def predict(self, module: dspy.Module, seconds: float | None = None, /, **inputs: Any) -> Any:
        """Await a DSPy module."""
        async with asyncio.timeout(seconds):  # not wait_for, which loses a cancellation that meets the result
            return await module.acall(**inputs)

    async def run(self, function: Callable[..., T], *args: Any, stop: Callable[[], object] | None = None) -> T:
        """Await a function in its own thread; see `await_in_thread`."""
        return await await_in_thread(function, *args, stop=stop, patience=_STOP_SECONDS)


def loop_for(module: dspy.Module, lm: dspy.BaseLM | None = None, *, timed: bool) -> Loop | None:
    """Return the event loop to await a module on, so that it can be cancelled; None to call it here.

    Args:
        module: The module.
        lm: The LM passed to the call, if one is.
        timed: Whether the call has a time-out. In a blocking run nothing else is worth a loop: switching to
            one costs a quarter of a predictor's own time.
    """
    scope = wait_scope()
    if scope.requests and (loop := scope.free_loop) is not None:
        return loop if can_be_awaited(module, lm) else None
    return background_loop("rlm-requests") if timed and can_share_a_loop(module, lm) else None


def _loop_to_stream_on(module: dspy.Module) -> Loop | None:
    """Return the event loop on which listeners hear a predictor's reply as it comes; None if nobody wants to.

    DSPy streams from a thread only into the event loop of `dspy.streamify`.
    """
    is_streamed = isinstance(module, dspy.Predict) and dspy.settings.send_stream is None and chunks_are_heard()
    if not is_streamed or not can_be_streamed(module):
        return None
    return loop_for(module, timed=False) or background_loop("rlm-streams")


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine over a `Blocking` port to its end, inside a running event loop or not.

    Raises:
        RuntimeError: If the coroutine suspends; over a `Blocking` port it does not.
    """
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise RuntimeError("A coroutine over a Blocking port must not suspend: it may only await the port's methods.")
