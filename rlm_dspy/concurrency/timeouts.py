"""Runs functions in threads with a time-out, and stops code that runs too long (`Watchdog`)."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
import math
import threading
import time
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any, TypeVar

from rlm_dspy.concurrency.event_loops import result_within
from rlm_dspy.concurrency.thread_pool import run_in_pool
from rlm_dspy.concurrency.wait_scope import Cancellation, awaited_on, cancelled_by, handing_over_stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

T = TypeVar("T")

_LOOK_SECONDS = 0.01
_AGAIN_SECONDS = 0.25
"""Seconds between two attempts to stop code."""
_logger = logging.getLogger("dspy.rlm_dspy")


def in_thread(function: Callable[..., T], *args: Any, name: str) -> Future[T]:
    """Run a function in a thread, in a copy of the current context. It cannot be cancelled.

    Not in a pool of a fixed size: 200 runs may run code at once, and a thread that never ends (code that hangs in
    this process) must not keep the program from exiting.

    Args:
        function: What to call.
        *args: Its arguments.
        name: The name of the thread meanwhile.
    """

    def work() -> T:
        try:
            return function(*args)
        except StopIteration as error:  # event loops do not accept it from a future
            raise RuntimeError(f"{function} raised StopIteration").with_traceback(error.__traceback__) from None

    future: Future[T] = Future()
    future.set_running_or_notify_cancel()
    run_in_pool(functools.partial(contextvars.copy_context().run, work), future, name)
    return future


async def await_in_thread(
    function: Callable[..., T], *args: Any, stop: Callable[[], object] | None = None, patience: float = math.inf
) -> T:
    """Run a function in its own thread and await its result. Its async tools run on this event loop.

    If the awaiting task is cancelled, the function is stopped and awaited, even if the task is cancelled again.

    Args:
        function: What to call.
        *args: Its arguments.
        stop: Makes the function return early. Called repeatedly in another thread until it has returned.
        patience: Seconds that a cancelled task waits for the function; then its result is discarded.
    """
    with awaited_on(asyncio.get_running_loop()):
        future = in_thread(function, *args, name="rlm-execution")
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        until = time.monotonic() + patience

        def keep_stopping() -> None:
            while stop is not None and not future.done():
                stop()
                wait([future], _AGAIN_SECONDS)

        in_thread(keep_stopping, name="rlm-stop")
        while not future.done() and time.monotonic() < until:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(_LOOK_SECONDS)
        raise


def call_with_timeout(function: Callable[[], T], seconds: float) -> T:
    """Call a function with a time-out and return its result.

    It runs in its own thread. After the time-out it runs to its end there, unless it checks `abandoned()`, and its
    result is discarded.

    Args:
        function: What to call.
        seconds: The time-out.

    Raises:
        TimeoutError: If it does not return in time.
        BaseException: What the function raises.
    """
    late = Cancellation[TimeoutError]()
    with cancelled_by(late), handing_over_stream():
        future = in_thread(function, name="rlm-predict")
    try:
        return result_within(future, seconds)
    finally:
        late.cancel(TimeoutError("Nobody waits for it any more."))


class Stopwatch:
    """Measures the seconds since it was made, without those in which it was paused.

    Attributes:
        started: When it was made, by `time.monotonic`.
    """

    def __init__(self) -> None:
        self.started = time.monotonic()
        self._lock = threading.Lock()
        self._holds, self._held, self._held_since = 0, 0.0, 0.0

    @property
    def waited(self) -> float:
        """The seconds in which it was paused."""
        with self._lock:
            return self._held + (time.monotonic() - self._held_since if self._holds else 0.0)

    @property
    def seconds(self) -> float:
        """The seconds in which it ran."""
        return time.monotonic() - self.started - self.waited

    def go_on(self, seconds: float, waited: float) -> None:
        """Continue another stopwatch: add its `seconds`, in `waited` of which it was paused."""
        self.started, self._held = time.monotonic() - seconds, waited

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Pause it in this scope. Scopes may overlap."""
        with self._lock:
            self._holds += 1
            if self._holds == 1:
                self._held_since = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._holds -= 1
                if not self._holds:
                    self._held += time.monotonic() - self._held_since


class Watchdog:
    """Stops the code in its scope after a time-out, or when `trigger` is called.

        with Watchdog(60, warn=close_ledger, stop=interpreter.interrupt, moment=0.3) as watchdog:
            interpreter.execute(code)
        print("stopped" if watchdog.expired else "in time")

    Args:
        seconds: The time-out of the scope; None for none.
        warn: Called at the time-out.
        stop: Called `moment` seconds after `warn`, and again until the scope ends.
        moment: Seconds between `warn` and `stop`.
        clock: Measures the time; default: one that is never paused.

    Attributes:
        expired: Whether the time-out was reached.
    """

    def __init__(
        self,
        seconds: float | None,
        warn: Callable[[], object],
        stop: Callable[[], object],
        *,
        moment: float,
        clock: Stopwatch | None = None,
    ) -> None:
        self.expired = False
        self._clock = clock or Stopwatch()
        self._end = None if seconds is None else self._clock.seconds + seconds
        self._warn = warn
        self._stop = stop
        self._moment = moment
        self._started, self._warning = threading.Lock(), threading.Lock()
        self._triggered, self._over = threading.Event(), threading.Event()

    def __enter__(self) -> Self:
        if self._end is not None:
            self._start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._warning:  # no warning for a scope that ended in time
            self._over.set()
        self._triggered.set()

    def trigger(self) -> None:
        """Stop the code now, from any thread."""
        self._triggered.set()
        self._start()

    def _start(self) -> None:
        if self._started.acquire(blocking=False):
            threading.Thread(target=self._watch, name="rlm-watchdog", daemon=True).start()

    def _watch(self) -> None:
        if not self._triggered_in_time():
            with self._warning:
                self._expire()
            self._triggered.wait(self._moment)
        while not self._over.is_set():
            self._stop()
            self._over.wait(_AGAIN_SECONDS)

    def _triggered_in_time(self) -> bool:
        """Wait until it is triggered, or the time is over; return whether it was triggered."""
        if self._end is None:
            return self._triggered.wait()
        while (left := self._end - self._clock.seconds) > 0:
            if self._triggered.wait(max(left, _LOOK_SECONDS)):  # while the clock is paused, `left` may be tiny
                return True
        return self._triggered.is_set()

    def _expire(self) -> None:
        if not self._over.is_set():
            self.expired = True
            try:
                self._warn()
            except Exception:  # the code must be stopped anyway
                _logger.exception("RLM: the warning before the end of the time failed.")
