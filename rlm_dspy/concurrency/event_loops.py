"""Event loops in other threads, on which what is asked for can be ended before it answers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import os
import threading
from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy._dspy_compat import has_async_engine
from rlm_dspy.concurrency.async_tools import is_async

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_OURS = ("dspy", "rlm_dspy")
_lock = threading.Lock()
_own: tuple[int, asyncio.AbstractEventLoop] | None = None


def own_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop that this process keeps in a thread, with the connections of blocking runs."""
    global _own  # noqa: PLW0603  # one for each process; a forked one has no thread for it
    with _lock:
        if _own is None or _own[0] != os.getpid():
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="rlm-loop", daemon=True).start()
            _own = (os.getpid(), loop)
        return _own[1]


def can_be_awaited(module: dspy.Module, lm: Any = None) -> bool:
    """Whether a module and all LMs that it may ask have an async form.

    Not a ReAct's: tools that are plain functions would hold up the event loop.

    Args:
        module: What would be awaited.
        lm: An LM that it is called with, if it is.
    """
    awaited = callable(getattr(module, "aforward", None)) and not isinstance(module, dspy.ReAct)
    return awaited and all(map(_answers_async, _lms_of(module, lm)))


def must_be_awaited(module: dspy.Module) -> bool:
    """Whether a module has no other form, or is a ReAct with tools that have no other."""
    if isinstance(module, dspy.ReAct):
        return any(map(is_async, module.tools.values()))
    return not has_forward(module) and callable(getattr(module, "aforward", None))


def has_forward(module: dspy.Module) -> bool:
    """Whether a module has a sync form."""
    return "forward" in vars(module) or hasattr(type(module), "forward")  # DSPy warns of looking at its own


def can_share_a_loop(module: dspy.Module, lm: Any = None) -> bool:
    """Whether a module may be awaited on `own_loop`, where it must hold up nobody.

    That are DSPy's and our predictors over DSPy's own engines; not if replies are streamed to the caller's loop.
    """
    return (
        isinstance(module, dspy.Predict | dspy.ChainOfThought)
        and type(module).__module__.partition(".")[0] in _OURS
        and dspy.settings.send_stream is None
        and can_be_awaited(module, lm)
        and all(isinstance(getattr(each, "engine", None), str) for each in _lms_of(module, lm))
    )


def _lms_of(module: dspy.Module, lm: Any) -> list[Any]:
    lms = [dspy.settings.lm, lm, *(each.lm for _, each in module.named_predictors())]
    return [each for each in lms if each is not None]


def _answers_async(lm: Any) -> bool:
    """Whether an LM has an async form; an engine of its own must come with a second one."""
    if type(lm).aforward is dspy.BaseLM.aforward:
        return False
    own_engine = not isinstance(getattr(lm, "engine", "auto"), str)
    return not own_engine or has_async_engine(lm)


class Elsewhere:
    """A call that is awaited on an event loop in another thread, in a copy of the present context.

    Args:
        loop: The event loop.
        call: Returns what is awaited.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self._left: list[contextvars.Context] = []

        async def ask() -> Any:
            try:
                return await call()
            finally:
                self._left.append(contextvars.copy_context())

        self._future = asyncio.run_coroutine_threadsafe(ask(), loop)

    def cancel(self) -> None:
        """End it; whoever waits for its result is told by a `concurrent.futures.CancelledError`."""
        self._future.cancel()

    def result(self, seconds: float | None = None) -> Any:
        """Return what it gives. What it has left in its context is left here, as by a plain call.

        Args:
            seconds: How long to wait for it; None for ever.

        Raises:
            TimeoutError: If it has given nothing by then; it was cancelled.
            concurrent.futures.CancelledError: If it was cancelled.
            BaseException: What it raises.
        """
        try:
            return self._future.result(seconds)
        except concurrent.futures.TimeoutError:
            if self._future.done():
                raise
            self._future.cancel()
            raise TimeoutError(f"There was no reply within {seconds:.3g} seconds.") from None
        finally:
            for context in self._left:
                for variable, value in context.items():
                    if variable.get(None) is not value:
                        variable.set(value)
