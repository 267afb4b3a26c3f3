"""Handles signals to the process of the command line."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

_SAME_SECONDS = 1
"""A signal within this time of the last one counts as the same signal."""
ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""The signals that end the process: of `kill` and `timeout`, and of a closed terminal or connection."""


def code_of(number: int) -> int:
    """Return the exit code of a process that a signal ended."""
    return 128 + number


@contextlib.contextmanager
def ended_as_by_ctrl_c() -> Iterator[None]:
    """Handle SIGTERM and SIGHUP as Ctrl-C, so that nothing is lost, with the exit codes 143 and 129.

    A signal that is already ignored, as by `nohup`, or handled, is left unchanged.
    """
    came: list[int] = []

    def interrupt(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        if len(came) == 1:  # some senders signal the process and its group
            raise KeyboardInterrupt

    with handled({number: interrupt for number in ENDING if signal.getsignal(number) is signal.SIG_DFL}):
        try:
            yield
        except SystemExit as end:
            if came and end.code:
                raise SystemExit(code_of(came[0])) from None
            raise


@contextlib.contextmanager
def ended_at_once() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the process in this scope, in which Ctrl-C does not, unless they are ignored."""
    came: list[int] = []

    def end(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        if len(came) == 1:
            sys.exit(code_of(number))

    with handled({number: end for number in ENDING if signal.getsignal(number) not in (signal.SIG_IGN, None)}):
        yield


@contextlib.contextmanager
def hangup_as_sigterm() -> Iterator[None]:
    """Handle SIGHUP in this scope as SIGTERM, which ends a server of uvicorn, unless it is ignored."""
    others = [each for each in ENDING if each != signal.SIGTERM and signal.getsignal(each) is not signal.SIG_IGN]
    with handled({number: lambda *_: signal.raise_signal(signal.SIGTERM) for number in others}):
        yield


@contextlib.contextmanager
def one_interrupt_at_a_time() -> Iterator[None]:
    """Ignore a Ctrl-C within a second of the last one, so that it does not interrupt saving.

    `uv run` and other parents forward a signal that the terminal has already sent to the process.
    """
    last = float("-inf")

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before > _SAME_SECONDS:
            raise KeyboardInterrupt

    is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with handled({signal.SIGINT: interrupt} if is_usual else {}):
        yield


@contextlib.contextmanager
def exit_code_kept() -> Iterator[None]:
    """Let no signal change the exit code after this scope has set it.

    Signals are ignored from then on. Threads may still wait for a model, so a signal more than a second later ends
    the process.
    """
    try:
        yield
    except SystemExit as end:
        code, since = end.code if isinstance(end.code, int) else int(bool(end.code)), time.monotonic()

        def cut_off(_number: int, _frame: FrameType | None) -> None:
            if time.monotonic() - since > _SAME_SECONDS:
                os._exit(code)

        if threading.current_thread() is threading.main_thread():
            _handle(cut_off)
            atexit.register(_handle, signal.SIG_IGN)  # Python resets its own handlers after that
        raise


def _handle(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> None:
    for number in (signal.SIGINT, *ENDING):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


@contextlib.contextmanager
def handled(handlers: dict[int, Callable[[int, FrameType | None], object]]) -> Iterator[None]:
    """Handle signals in this scope, in the main thread; other threads cannot."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_interrupts() -> None:
    """Ignore Ctrl-C from now on; `interrupts_restored` ends that."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def interrupts_restored() -> Iterator[None]:
    """Handle Ctrl-C after this scope as before it."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
