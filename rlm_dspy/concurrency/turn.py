"""Lets one caller in at a time, also after an interrupt."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Turn:
    """Belongs to one caller at a time.

    An interrupt at any step leaves it free. One that arrives between `Lock.acquire()` and the `try` behind it
    leaves the lock held for ever.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: object = None

    @property
    def taken(self) -> bool:
        """Whether it belongs to a caller now."""
        return self._owner is not None

    @contextmanager
    def tried(self) -> Iterator[bool]:
        """Take it for this scope if it is free; yield whether it was."""
        mine = object()
        try:
            with self._lock:
                if self._owner is None:
                    self._owner = mine
            yield self._owner is mine
        finally:
            if self._owner is mine:
                self._owner = None
