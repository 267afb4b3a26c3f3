"""Tells the host what a cell prints while it runs, so that the end of the process loses none of it.

The standard library only.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from . import wire
from .cell import Capped

if TYPE_CHECKING:
    from .channel import Channel

_AT_ONCE, _AT_ONCE_CHARS = 64, 4_096
"""A short output is told at once, whenever a line of it ends."""
_PAUSE_SECONDS = 0.05
"""Between two times that a longer one is told."""


class Printed(Capped):
    """The output of a session's cells.

    Args:
        max_chars: What is kept of the output of a cell.
        channel: To the host.
    """

    def __init__(self, max_chars: int, channel: Channel) -> None:
        super().__init__(max_chars)
        self._channel = channel
        self._cell = self._told = 0
        self._told_at = 0.0
        self._pid = os.getpid()

    def begin(self, cell: int) -> None:
        """Tell the host what is written from now on as the output of a cell."""
        self.start_anew()
        self._cell, self._told, self._told_at, self._pid = cell, 0, time.monotonic(), os.getpid()

    def end(self) -> str:
        """Tell it no more; return what was written, without empty lines at its end."""
        self._cell = 0
        return self.text().rstrip("\n")

    def write(self, text: str) -> int:
        """Accept all of `text`."""
        count = super().write(text)
        if self._cell and text.endswith("\n"):  # another thread may write meanwhile, but not into a line
            self._tell()
        return count

    def _tell(self) -> None:
        if self._told >= _AT_ONCE or self.written > _AT_ONCE_CHARS:
            now = time.monotonic()
            if now < self._told_at + _PAUSE_SECONDS:
                return
            self._told_at = now
        if os.getpid() != self._pid:  # a child that the code has forked
            return
        self._told += 1
        frame: wire.Frame = {"t": "printed", "id": self._cell, "text": self.text()}
        with suppress(OSError, MemoryError):  # the host is gone, or there is no room to say it
            self._channel.send(wire.encoded(frame))
