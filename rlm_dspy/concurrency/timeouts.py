"""For how long a blocking call is waited for."""

from __future__ import annotations

import contextvars
import logging
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from typing import Self


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


_AGAIN_SECONDS = 0.25


_logger = logging.getLogger("dspy.rlm_dspy")


class Alarm:
    """Stops what runs in its scope when a time is over, or when it is rung.

    Args:
        seconds: From the beginning of the scope; None: never.
        warn: Called when they are over.
        stop: Called a moment later, and again until the scope ends.
        moment: How long what runs may go on after the warning, in seconds.

    Attributes:
        rang: Whether the time was over.
    """

    def __init__(
        self, seconds: float | None, warn: Callable[[], object], stop: Callable[[], object], *, moment: float
    ) -> None:
        self.rang = False
        self._seconds = seconds
        self._warn = warn
        self._stop = stop
        self._moment = moment
        self._over = False
        self._started = False
        self._changed = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        if self._seconds is not None:
            self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._changed.set()

    def ring(self) -> None:
        """Stop what runs now, from any thread and without warning."""
        self._changed.set()
        self._start()

    def _start(self) -> None:
        with self._lock:
            if not self._started:
                self._started = True
                threading.Thread(target=self._watch, name="rlm-alarm", daemon=True).start()

    def _watch(self) -> None:
        if not self._changed.wait(self._seconds):
            self.rang = True
            try:
                self._warn()
            except Exception:  # the code must be stopped all the same
                _logger.exception("RLM: the warning before the end of the time failed.")
            self._changed.wait(self._moment)
        while not self._over:
            self._stop()
            self._changed.clear()
            if not self._over:
                self._changed.wait(_AGAIN_SECONDS)
