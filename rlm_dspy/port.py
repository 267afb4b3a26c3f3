"""How the loop reaches the outside: one coroutine, driven without waiting or on an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    import dspy

T = TypeVar("T")


class Port(Protocol):
    """What the loop may wait for."""

    async def predict(self, module: dspy.Module, **inputs: Any) -> Any:
        """Call a DSPy module."""

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function that may take long: the model's code, starting and closing an interpreter."""


class Blocking:
    """Calls straight through. A coroutine over this port never waits, so `drive` runs it to its end."""

    async def predict(self, module: dspy.Module, **inputs: Any) -> Any:
        """Call a DSPy module."""
        return module(**inputs)

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function."""
        return function(*args)


class Awaiting:
    """Awaits modules, and gives each long function a thread of its own in the caller's context.

    Not a pool: 200 runs may be inside their code at once, and a thread that never ends (code that hangs in
    this process) must not keep the program from exiting.
    """

    async def predict(self, module: dspy.Module, **inputs: Any) -> Any:
        """Await a DSPy module."""
        return await module.acall(**inputs)

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Run a function in a thread and await its result.

        If the awaiting task is cancelled, the function goes on; its result is dropped.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        context = contextvars.copy_context()

        def work() -> None:
            try:
                result = context.run(function, *args)
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

        threading.Thread(target=work, name="rlm-execution", daemon=True).start()
        return await future


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
