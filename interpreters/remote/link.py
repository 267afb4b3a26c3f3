"""The near end of a connection to another machine: orders, values, sockets and processes over one byte stream."""

from __future__ import annotations

import hashlib
import itertools
import json
import mmap
import os
import socket
import stat
import threading
from collections import defaultdict
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from rlm_dspy.interpreters.host.deadlines import Deadline
from rlm_dspy.interpreters.host.fork_server_client import NoRung
from rlm_dspy.interpreters.host.processes import Eviction
from rlm_dspy.interpreters.remote.boot import modules
from rlm_dspy.interpreters.remote.relay import CHANNEL, NUMBER, REFERENCE, VALUE, Kind, Relay, Stream

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from typing import Self

    from rlm_dspy.interpreters.host.processes import Watched
    from rlm_dspy.interpreters.remote.carrier import Transport

_PIECE = 256 << 10
_REMEMBERED_FROM = 1 << 20
"""Bytes from which the digest of a value is kept: computing it takes a second per GB."""
_ANSWER_SECONDS = 60
_ERRORS = {"NoRung": NoRung, "TimeoutError": TimeoutError}


class FarHandle:
    """A process that carries a session on another machine.

    Args:
        link: The connection to it.
        number: Its number there.
    """

    def __init__(self, link: Link, number: int) -> None:
        self._link = link
        self._number = number
        self._ended = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._cpu_seconds = 0.0
        self._memory_over = 0
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when the process or the connection ends."""
        return self._ended

    def ends(self) -> None:
        """Record that it has ended."""
        with self._lock:
            if self._ended >= 0:
                os.eventfd_write(self._ended, 1)

    def seen(self, cpu_seconds: float, memory_over: int) -> None:
        """Record the far end's measurements."""
        self._cpu_seconds, self._memory_over = cpu_seconds, memory_over

    def signal(self, number: int) -> None:
        """Let the far end send it a signal, if it is alive."""
        with suppress(OSError):
            self._link.post(t="signal", handle=self._number, number=int(number))

    def cpu_seconds(self) -> float:
        """Return the CPU time that it had used half a second ago."""
        return self._cpu_seconds

    def memory_over(self, others: Collection[Self], limit: int) -> int:
        """Return the bytes of its session if the far end found them over the limit; else 0."""
        del others, limit  # the far end knows them
        return self._memory_over

    def give_up(self, copies: Sequence[int], others: Collection[Self], limit: int) -> Eviction:
        """Let the far end check again; see `Handle.give_up`."""
        with suppress(OSError):
            eviction = Eviction(*self._link.ask("give_up", self._among(copies, others, limit)))
            self._memory_over = eviction.over
            return eviction
        return Eviction(self._memory_over, 0)

    def enforce_memory_limit(self, copies: Sequence[int], others: Collection[Self], limit: int) -> int:
        """Let the far end check, if it found a session over the limit; see `Handle.enforce_memory_limit`."""
        if any(handle._memory_over for handle in (self, *others)):  # noqa: SLF001 (of the same class)
            with suppress(OSError):
                return int(self._link.ask("enforce_memory_limit", self._among(copies, others, limit)))
        return 0

    def _among(self, copies: Sequence[int], others: Collection[Self], limit: int) -> dict[str, object]:
        numbers = [handle._number for handle in others]  # noqa: SLF001 (of the same class)
        return {"handle": self._number, "copies": list(copies), "others": numbers, "limit": limit}

    def sweep(self) -> None:
        """Let the far end kill all others of its group, and wait for that."""
        with suppress(OSError):
            self._link.ask("sweep", {"handle": self._number})

    def close(self) -> None:
        """Release it; in a forked child of the host only here, where another thread may have held the locks."""
        if not self._link.is_own:
            os.close(self._ended)
            return
        self._link.release(self._number)
        with self._lock:
            os.close(self._ended)
            self._ended = -1


class Link:
    """One connection with everything that goes over it.

    Args:
        transport: The started far end, which is ended with this, and if this fails.

    Raises:
        ConnectionError: If it does not read the modules that it is to run.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._greeted = False
        self._owner = os.getpid()
        self._stream = Stream(transport.reads, transport.writes)
        self._relay = Relay(self._stream, self._reference)
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Future[Any]] = {}
        self._handles: dict[int, FarHandle] = {}
        self._ended_early: set[int] = set()
        self._digests: dict[tuple[int, ...], bytes] = {}
        self._sending: defaultdict[bytes, threading.Lock] = defaultdict(threading.Lock)
        self.watch = _NoticesAtOnce()
        """Checks the memory of workers when the far end reports that it is too large."""
        self.lost = ""
        """Why the connection is gone; empty while it lives."""
        jobs = (self._read, self._move, partial(self._stream.beat, self._silent))
        for job in jobs:
            threading.Thread(target=job, name="rlm-link", daemon=True).start()
        with ExitStack() as undo:  # the other side may read it late, or never
            undo.callback(self.close)
            with self._losing():
                self._stream.write(modules())
            undo.pop_all()

    @property
    def is_own(self) -> bool:
        """Whether this process made it; a forked child has its descriptors, but not its threads."""
        return self._owner == os.getpid()

    # Orders

    def post(self, **order: object) -> None:
        """Send an order without an answer.

        Raises:
            OSError: If the connection is gone.
        """
        self._send(Kind.ORDER, 0, json.dumps(order).encode())

    def _send(self, kind: Kind, number: int, *parts: bytes) -> None:
        with self._losing():
            self._stream.send(kind, number, *parts)

    @contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.lose(self._with_last_words(str(error)))
            raise ConnectionError(self.lost) from None

    def ask_later(self, order: str, arguments: Mapping[str, object]) -> tuple[int, Future[Any]]:
        """Send an order; return its number and the future of its answer.

        Raises:
            OSError: If the connection is gone.
        """
        number, answer = next(self._numbers), Future[Any]()
        self._waiting[number] = answer
        self.post(t=order, id=number, arguments=arguments)
        return number, answer

    def ask(self, order: str, arguments: Mapping[str, object], seconds: float = _ANSWER_SECONDS) -> Any:
        """Send an order and return the answer.

        Raises:
            TimeoutError: If there is none within `seconds`.
            OSError: If the far end refuses, or the connection is gone.
        """
        number, answer = self.ask_later(order, arguments)
        try:
            return answer.result(seconds)
        except TimeoutError:
            if answer.done():
                raise
            raise TimeoutError(f"{self._transport.name} did not answer within {seconds:g} s") from None
        finally:
            self._waiting.pop(number, None)

    # What goes along with packets

    def open(self, end: int) -> int:
        """Carry what is written to the other end of a socket; return the number of the channel."""
        number = next(self._numbers)
        self._relay.add(number, socket.socket(fileno=os.dup(end)))
        return number

    def hold(self, session: str, fds: Sequence[int], seconds: float) -> None:
        """Send the values of these descriptors that the far end does not have, for as long as a session lives.

        Raises:
            TimeoutError: If that takes longer.
            OSError: If the connection is gone.
        """
        deadline = Deadline(seconds)
        values = {self._digest(fd): fd for fd in fds}
        if not values:
            return
        with ExitStack() as alone:
            for digest in sorted(values):  # no other session sends the same value meanwhile
                alone.enter_context(self._sending[digest])
            names = [digest.hex() for digest in values]
            for name in self.ask("lacking", {"session": session, "digests": names}):
                digest = bytes.fromhex(name)
                self._send_value(digest, values[digest], deadline)

    def _send_value(self, digest: bytes, fd: int, deadline: Deadline) -> None:
        size = os.fstat(fd).st_size
        with mmap.mmap(fd, size, mmap.MAP_PRIVATE, mmap.PROT_READ) as value:
            for place, start in enumerate(range(0, size, _PIECE)):
                if deadline.left() <= 0:
                    raise TimeoutError(
                        f"{start >> 20} of {size >> 20} MB were sent to {self._transport.name} in that time"
                    )
                self._send(Kind.PIECE, place, digest, value[start : start + _PIECE])
        self._send(Kind.PIECE, 1, digest)

    def _digest(self, fd: int) -> bytes:
        status = os.fstat(fd)
        key = (status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns)
        if key in self._digests:
            return self._digests[key]
        with mmap.mmap(fd, status.st_size, mmap.MAP_PRIVATE, mmap.PROT_READ) as value:
            digest = hashlib.blake2b(value, digest_size=20).digest()
        if status.st_size >= _REMEMBERED_FROM:
            self._digests[key] = digest
        return digest

    def _reference(self, fd: int) -> bytes:
        """Return the reference for a descriptor that accompanies a packet, and close the descriptor."""
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                return REFERENCE.pack(CHANNEL, NUMBER.pack(self.open(fd)))
            return REFERENCE.pack(VALUE, self._digest(fd))
        finally:
            os.close(fd)

    # Processes

    def handle(self, number: int) -> FarHandle:
        """Return the handle of a process by its number there."""
        made = FarHandle(self, number)
        with self._lock:
            self._handles[number] = made
            has_ended = self.lost or number in self._ended_early
        if has_ended:
            made.ends()
        return made

    def release(self, number: int) -> None:
        """Let the far end forget a process."""
        with self._lock:
            self._handles.pop(number, None)
        with suppress(OSError):
            self.post(t="release", handle=number)

    # What comes

    def _read(self) -> None:
        try:
            self._stream.await_greeting()
            self._greeted = True
            while True:
                kind, number, body = self._stream.receive()
                if kind == Kind.PACKET:
                    self._relay.deliver(number, body[1:])
                elif kind == Kind.CLOSE:
                    self._relay.end(number)
                elif kind == Kind.CREDIT:
                    self._relay.credit(number, int.from_bytes(body, "little"))
                elif kind == Kind.ORDER:
                    self._handle_report(json.loads(body))
        except EOFError:
            self.lose(self._with_last_words("it was closed by the other side"))
        except (OSError, ValueError) as error:
            self.lose(str(error))

    def _handle_report(self, report: Mapping[str, Any]) -> None:
        answer = self._waiting.pop(report.get("id", 0), None)
        if answer is not None:
            if report["t"] == "done":
                answer.set_result(report["answer"])
            else:
                answer.set_exception(_ERRORS.get(report["kind"], OSError)(report["error"]))
            return
        number = report.get("handle", 0)
        with self._lock:
            handle = self._handles.get(number)
            if handle is None and report["t"] == "ended":
                self._ended_early.add(number)
        if handle is not None and report["t"] == "ended":
            handle.ends()
        elif handle is not None and report["t"] == "seen":
            handle.seen(report["cpu_seconds"], report["memory_over"])
            if report["memory_over"]:  # the check may have to wait, and this thread must not
                threading.Thread(target=self.watch.notice, name="rlm-watch", daemon=True).start()

    def _move(self) -> None:
        try:
            self._relay.run()
        except OSError as error:
            self.lose(str(error))

    # The end

    def _silent(self, why: str) -> None:
        self.lose(why if self._greeted else f"{why} {self._transport.last_words()}".rstrip())

    def _with_last_words(self, otherwise: str) -> str:
        return self._transport.last_words() or (otherwise if self._greeted else "it ended at once")

    def lose(self, why: str) -> None:
        """Record that the connection is lost, and end everything that waits for it."""
        with self._lock:
            if self.lost:
                return
            name = self._transport.name
            self.lost = (
                f"The connection to {name} was lost ({why})" if self._greeted else f"{name} does not run: {why}"
            )
            handles = list(self._handles.values())
        self._stream.close()
        self._relay.close()
        for handle in handles:
            handle.ends()
        for number in list(self._waiting):
            answer = self._waiting.pop(number, None)
            if answer is not None:
                answer.set_exception(ConnectionError(self.lost))
        self._transport.end()

    def close(self) -> None:
        """End the connection and all that runs at its far end."""
        if self.is_own:
            self.lose("it was closed here")
            self._transport.end()  # another thread may have recorded the loss a moment ago
        else:
            self._stream.detach()


class _NoticesAtOnce:
    """Checks groups when the far end, which checks their processes, has reported one."""

    def __init__(self) -> None:
        self._groups: set[Watched] = set()
        self._lock = threading.Lock()

    def add(self, group: Watched) -> None:
        """Check a group from now on."""
        with self._lock:
            self._groups.add(group)

    def remove(self, group: Watched) -> None:
        """Stop checking it."""
        with self._lock:
            self._groups.discard(group)

    def notice(self) -> None:
        """Check all groups, because a session takes too much memory."""
        with self._lock:
            groups = list(self._groups)
        for group in groups:
            group.enforce_memory_limit()
