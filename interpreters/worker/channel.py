"""Connects a worker to the host: any thread may call the host, and the main thread waits for cells.

Threads that wait take turns at reading. The standard library only.
"""

from __future__ import annotations

import select
import signal
import threading
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from . import wire

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from .frames import Answer, Order

T = TypeVar("T")


_LOOK_SECONDS = 0.05
"""How often the main thread, while it waits for its turn at reading, checks whether it was interrupted."""


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


class Interrupts:
    """Raises SIGINT as KeyboardInterrupt in a cell, but only between two steps of the channel, or while it waits.

    Only the main thread gets interrupts; in another one, the methods do nothing about them.
    """

    def __init__(self) -> None:
        self.in_cell = False
        self._held = 0
        self._pending = False
        signal.signal(signal.SIGINT, self._arrived)

    def _arrived(self, *_: object) -> None:
        if self._held:
            self._pending = True
        elif self.in_cell:
            raise KeyboardInterrupt("the cell was interrupted")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Defer an interrupt until the end of the block."""
        if not _in_main_thread():
            yield
            return
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        if not self._held:
            self.deliver()

    def deliver(self) -> None:
        """Raise an interrupt that was deferred."""
        if self._pending and _in_main_thread():
            self._pending = False
            if self.in_cell:
                raise KeyboardInterrupt("the cell was interrupted")

    def wait(self, poll: select.poll) -> None:
        """Wait for an event. An interrupt ends the wait, also within a block that defers it."""
        if not _in_main_thread():
            poll.poll()
            return
        held, self._held = self._held, 0
        try:
            self.deliver()
            poll.poll()
        finally:
            self._held = held

    def forget(self) -> None:
        """Drop an interrupt for an ended cell."""
        self._held, self._pending = 0, False


class Channel:
    """Frames to and from the host."""

    def __init__(self, sock: socket.socket, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        self._sock = sock
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self.start_anew()

    def start_anew(self) -> None:
        """Reset the state in a copy of the process, in which no other thread lives."""
        self._sending = threading.Lock()
        self._turn = threading.Condition()
        self._reading = False
        self._answers: dict[int, tuple[Answer, list[int]]] = {}
        self._orders: deque[tuple[Order, list[int]]] = deque()
        self._calls = 0

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        return self._sock.fileno()

    def send(self, payload: bytes, number: int = 0) -> None:
        """Send an encoded frame."""
        with self._interrupts.held(), self._sending:
            wire.send(self._sock, payload, number)

    def next_order(self) -> tuple[Order, list[int]]:
        """Return the next frame that is not an answer, with its descriptors.

        Raises:
            EOFError: If the host is gone.
        """
        return self._received(lambda: self._orders.popleft() if self._orders else None)

    def call(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Answer, list[int]]:
        """Send a call of a tool to the host, wait for its answer and return it with its descriptors.

        Raises:
            EOFError: If the host is gone.
            TypeError: If the arguments have no form in JSON.
            ValueError: If they are larger than the host accepts.
        """
        with self._interrupts.held(), self._turn:
            self._calls += 1
            number = self._calls
        frame = {"t": "call", "id": number, "name": name, "args": args, "kwargs": kwargs}
        try:
            payload = wire.encoded_for_host(frame)
        except ValueError as error:
            raise ValueError(f"The arguments of {name}() cannot leave the REPL: {error}") from None
        self.send(payload, number)
        return self._received(lambda: self._answers.pop(number, None))

    def _received(self, taken: Callable[[], T | None]) -> T:
        """Return the result of `taken`; read from the socket while no other thread does."""
        with self._interrupts.held():
            while True:
                with self._turn:
                    found = taken()
                    if found is not None:
                        return found
                    is_reader, self._reading = not self._reading, True
                    if not is_reader:
                        self._turn.wait(_LOOK_SECONDS if _in_main_thread() else None)
                if is_reader:
                    self._read()
                else:
                    self._interrupts.deliver()

    def _read(self) -> None:
        """Wait for a frame and take it, then let another thread read."""
        try:
            self._interrupts.wait(self._poll)
            self._take()
        finally:
            with self._turn:
                self._reading = False
                self._turn.notify_all()

    def _take(self) -> None:
        frame, fds = wire.receive_trusted(self._sock)
        if frame["t"] == "answer":
            self._answers[frame["id"]] = (frame, fds)
        else:
            self._orders.append((frame, fds))
