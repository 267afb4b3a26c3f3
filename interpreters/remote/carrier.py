"""Defines what starts a far end and carries its stream, as the near end sees it: `Carrier` and `Transport`."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import threading

_WORDS_SECONDS = 1
_LAST_LINES, _MOST_LINE = 8, 500


class Transport(Protocol):
    """A running command on another machine, with its stdin and stdout."""

    name: str
    """What users know it as."""
    reads: int
    """The descriptor of its stdout."""
    writes: int
    """That of its stdin."""

    def last_words(self) -> str:
        """Return the end of what it printed to stderr."""

    def end(self) -> None:
        """End it: its stdin is closed already."""


class LastWords:
    """Keeps the last lines that a far end printed to stderr, while a thread listens to it."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)

    def add(self, text: str) -> None:
        """Add lines; empty ones do not count."""
        self._lines.extend(line.strip()[:_MOST_LINE] for line in text.splitlines() if line.strip())

    def after(self, listener: threading.Thread) -> str:
        """Return them when the listener has ended, or soon."""
        listener.join(_WORDS_SECONDS)
        return " ".join(self._lines)


class Carrier(Protocol):
    """Starts far ends. It is hashable, and equal ones share a connection."""

    @property
    def hint(self) -> str:
        """What may be wrong if there is no connection, to be added to the error."""

    def open(self) -> Transport:
        """Start a far end.

        Raises:
            OSError: If that fails; nothing is left of it then.
        """
