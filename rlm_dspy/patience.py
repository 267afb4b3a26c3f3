"""For how long a blocking call is waited for."""

from __future__ import annotations

import contextvars
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

given_up: ContextVar[threading.Event | None] = ContextVar("given_up", default=None)
"""Set when nobody waits any more for what runs in this context; None if it is waited for however long it takes."""


def in_time(function: Callable[[], T], seconds: float) -> T:
    """Return what a function returns, if it does within a time.

    It runs in a thread of its own, in a copy of the context. One that is too late goes on to its end there, unless
    it looks at `given_up`; what it returns is dropped.

    Args:
        function: What to call.
        seconds: How long to wait for it.

    Raises:
        TimeoutError: If it has not returned by then.
        BaseException: What the function raises.
    """
    late, ended = threading.Event(), threading.Event()
    returned: list[T] = []
    raised: list[BaseException] = []

    def work() -> None:
        given_up.set(late)
        try:
            returned.append(function())
        except BaseException as error:  # noqa: BLE001  # whatever it is belongs to the caller
            raised.append(error)
        ended.set()

    threading.Thread(target=contextvars.copy_context().run, args=(work,), name="rlm-predict", daemon=True).start()
    try:
        if not ended.wait(seconds):
            raise TimeoutError(f"There was no reply within {seconds:.3g} seconds.")
    finally:
        late.set()
    if raised:
        raise raised[0]
    return returned[0]
