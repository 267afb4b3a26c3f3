"""Interrupts code at each point at which Ctrl-C can arrive, and looks whether the rest still works after it."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, ModuleType

T = TypeVar("T")
_PATIENCE_SECONDS = 20


def _raises() -> None:
    raise KeyboardInterrupt


class _InterruptAt:
    """Interrupts step `number` of the code of some files.

    A step is what CPython lets an interrupt in at: the begin of a function in Python, and the end of one in C.
    """

    def __init__(self, number: int, files: list[str], interrupt: Callable[[], None]) -> None:
        self.left, self._files, self._interrupt = number, files, interrupt

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if event in {"call", "c_return"} and frame.f_code.co_filename in self._files:
            self.left -= 1
            if self.left == 0:
                self._interrupt()


def interrupted_everywhere(
    made: Callable[[], T],
    used: Callable[[T], Any],
    works: Callable[[T], Any],
    *modules: ModuleType,
    interrupt: Callable[[], None] = _raises,
) -> int:
    """Use a fresh object for each step, interrupt it there, and let it work in another thread after that.

    Args:
        made: Returns the object.
        used: Is interrupted in the code of `modules`, of contextlib and of threading.
        works: Raises or hangs if the object does not work any more.
        *modules: Those that are looked at.
        interrupt: Raises KeyboardInterrupt, at once or where the code under test lets it.

    Returns:
        The number of interrupts.
    """
    files = [module.__file__ or "" for module in (contextlib, threading, *modules)]
    for number in itertools.count(1):
        each = made()
        at = _InterruptAt(number, files, interrupt)
        before = sys.getprofile()
        try:
            sys.setprofile(at)
            used(each)
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(before)
        if at.left > 0:
            return number - 1
        _check(works, each, f"after an interrupt at step {number}")
    raise AssertionError


def _check(works: Callable[[T], Any], made: T, when: str) -> None:
    worked: list[Any] = []
    thread = threading.Thread(target=lambda: worked.append(works(made)), daemon=True)
    thread.start()
    thread.join(_PATIENCE_SECONDS)
    assert worked, f"it hangs or fails {when}"
