"""Captures the output of a cell, and reports it to the host while the cell runs.

The standard library only: the host uses this module in its own process too.
"""

from __future__ import annotations

import codecs
import io
import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from . import wire

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from .channel import Channel

_AT_ONCE, _AT_ONCE_CHARS = 64, 4_096
"""The first lines of a short output are reported at once, each when it ends."""
_PAUSE_SECONDS = 0.05
"""The time between two reports of a longer output."""


class Capped(io.TextIOBase):
    """A text stream that keeps `max_chars` (2 or more) of what is written, half from each end, in bounded memory.

    Safe to write from several threads. Closing it does nothing: code that closes `sys.stdout` goes on.
    """

    encoding = "utf-8"

    def __init__(self, max_chars: int = 100_000) -> None:
        if max_chars < 2:  # noqa: PLR2004 (one from each end)
            raise ValueError(f"at least 2 characters of output must be kept, not {max_chars}")
        self._max_chars = max_chars
        self.buffer = _Bytes(self)
        self.start_anew()

    def start_anew(self) -> None:
        """Forget what was written. Code may keep a stream, so a session has one for all its cells."""
        # A new one: in a copy of the process, a thread that is not there may have held it. One thread may take it
        # twice: a `__del__` that prints can run while it writes.
        self._lock = threading.RLock()
        self.written = self._tail_chars = 0
        self._head_room = self._max_chars - self._max_chars // 2
        self._tail_room = self._max_chars // 2
        self._head: list[str] = []
        self._tail: list[str] = []
        self._ends_line = True

    def write(self, text: str) -> int:
        """Accept all of `text`."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if text:
            with self._lock:
                self._keep(text)
        return len(text)

    def _keep(self, text: str) -> None:
        self.written += len(text)
        self._ends_line = text.endswith("\n")
        if self._head_room:
            head, text = text[: self._head_room], text[self._head_room :]
            self._head_room -= len(head)
            self._head.append(head)
        if text:
            self._tail.append(text[-self._tail_room :])
            self._tail_chars += len(self._tail[-1])
            if self._tail_chars > 2 * self._tail_room:
                self._compact()

    def _compact(self) -> None:
        tail = "".join(self._tail)[-self._tail_room :]
        self._tail, self._tail_chars = [tail], len(tail)

    def text(self) -> str:
        """The text that was written; if it is too long, its two ends and the number of omitted characters."""
        with self._lock:
            self._compact()
            head, tail = "".join(self._head), self._tail[0]
            left_out = self.written - len(head) - len(tail)
            return f"{head}\n... [{left_out} characters left out] ...\n{tail}" if left_out else head + tail

    def end_line(self) -> None:
        """End the current line, if it is not empty."""
        if not self._ends_line:
            self.write("\n")

    def close(self) -> None:
        """Do nothing: the cell's output is still needed."""

    def reconfigure(self, **_: object) -> None:
        """Do nothing; code calls it on real streams to request UTF-8."""


class _Bytes(io.RawIOBase):
    """Writes bytes to a text stream as UTF-8, as `sys.stdout.buffer` does."""

    def __init__(self, text: Capped) -> None:
        self._text = text
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        """Accept all of `data`."""
        taken = bytes(data)
        self._text.write(self._decode(taken))
        return len(taken)

    def close(self) -> None:
        """Do nothing, as the text stream."""


class Printed(Capped):
    """The output of a session's cells. It is reported to the host, so the end of the process loses none of it.

    Args:
        max_chars: How many characters of a cell's output are kept.
        channel: The channel to the host.
    """

    def __init__(self, max_chars: int, channel: Channel) -> None:
        super().__init__(max_chars)
        self._channel = channel
        self._cell = self._reports = 0
        self._reported_at = 0.0
        self._pid = os.getpid()

    def begin(self, cell: int) -> None:
        """Report to the host what is written from now on, as the output of a cell."""
        self.start_anew()
        self._cell, self._reports, self._reported_at, self._pid = cell, 0, time.monotonic(), os.getpid()

    def end(self) -> str:
        """Stop reporting; return what was written, without empty lines at its end."""
        self._cell = 0
        return self.text().rstrip("\n")

    def write(self, text: str) -> int:
        """Accept all of `text`."""
        count = super().write(text)
        if self._cell and text.endswith("\n"):  # another thread may write between lines, but not within one
            self._report()
        return count

    def _report(self) -> None:
        if self._reports >= _AT_ONCE or self.written > _AT_ONCE_CHARS:
            now = time.monotonic()
            if now < self._reported_at + _PAUSE_SECONDS:
                return
            self._reported_at = now
        if os.getpid() != self._pid:  # in a child that the code has forked
            return
        self._reports += 1
        frame: wire.Frame = {"t": "printed", "id": self._cell, "text": self.text()}
        with suppress(OSError, MemoryError):  # the host is gone, or there is no memory for the report
            self._channel.send(wire.encoded(frame))
