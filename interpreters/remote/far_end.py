"""The far end of a remote interpreter: runs the fork server here for a host at the other end of a stream.

`boot.BOOT` starts it with this package's modules, and it ends with the stream. It passes on a worker's packets
unread. It imports the standard library only.
"""

from __future__ import annotations

import fcntl
import json
import os
import queue
import shutil
import signal
import threading
from collections import OrderedDict
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from rlm_dspy.interpreters import diagnosis
from rlm_dspy.interpreters.confinement.limits import WorkerLimits
from rlm_dspy.interpreters.confinement_policy import ConfinementPolicy
from rlm_dspy.interpreters.host.fork_server_client import NoRung, recipe
from rlm_dspy.interpreters.remote.relay import CHANNEL, GREETING, NUMBER, REFERENCE, Kind, Relay, Stream
from rlm_dspy.interpreters.worker import memory, wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_dspy.interpreters.host.fork_server_client import ForkServer
    from rlm_dspy.interpreters.host.processes import Eviction, LocalHandle
    from rlm_dspy.interpreters.worker.wire import JSON

_LOOK_SECONDS = 0.5
_KEPT_BYTES = 1 << 30
"""Bytes of values that are kept for later sessions when no session has them any more."""
_ADD_SEALS, _ALL_SEALS = 1033, 0xF


class Carrier(NamedTuple):
    """A process that carries a session."""

    handle: LocalHandle
    session: str
    memory_bytes: int


class Values:
    """Values in sealed memory by the digest of their content, each stored once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._whole: OrderedDict[bytes, int] = OrderedDict()
        self._partial: dict[bytes, int] = {}
        self._holders: dict[bytes, set[str]] = {}

    def lacking(self, session: str, digests: list[bytes]) -> list[bytes]:
        """Let a session hold values until it ends; return those that must be sent."""
        with self._lock:
            for digest in digests:
                self._holders.setdefault(digest, set()).add(session)
            return [digest for digest in digests if digest not in self._whole]

    def add(self, place: int, digest: bytes, piece: memoryview) -> None:
        """Store a piece of a value: the first has place 0, and an empty one is the last."""
        if place == 0:
            if digest in self._partial:  # it was broken off
                os.close(self._partial.pop(digest))
            self._partial[digest] = memory.create()
        fd = self._partial[digest]
        if piece:
            memory.write(fd, [piece])
            return
        fcntl.fcntl(fd, _ADD_SEALS, _ALL_SEALS)
        with self._lock:
            del self._partial[digest]
            if digest in self._whole:
                os.close(fd)
            else:
                self._whole[digest] = fd

    def descriptor(self, digest: bytes) -> int:
        """Return a descriptor of a value that a session holds; the caller closes it.

        It has an offset of its own: workers that read the same value at once must not move each other's.
        """
        with self._lock:
            self._whole.move_to_end(digest)
            return os.open(f"/proc/self/fd/{self._whole[digest]}", os.O_RDONLY)

    def release(self, session: str) -> None:
        """Record that a session has ended; drop the least recently used values if they take too much memory."""
        with self._lock:
            for holders in self._holders.values():
                holders.discard(session)
            free = [digest for digest in self._whole if not self._holders.get(digest)]
            sizes = {digest: os.fstat(self._whole[digest]).st_size for digest in free}
            kept = sum(sizes.values())
            for digest in free:
                if kept <= _KEPT_BYTES:
                    return
                kept -= sizes[digest]
                os.close(self._whole.pop(digest))
                del self._holders[digest]


class FarEnd:
    """Serves one host until the stream ends."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._relay = Relay(stream, None)
        self._values = Values()
        self._server: ForkServer | None = None
        self._numbers = 0
        self._carriers: dict[int, Carrier] = {}
        self._reported: dict[int, tuple[float, int]] = {}
        self._orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._jobs: dict[str, Callable[..., object]] = {
            "start": self._start,
            "doctor": self._doctor,
            "scratch": self._scratch,
            "drop": self._drop,
            "lacking": self._lacking,
            "spawn": self._spawn,
            "watched": self._watched,
            "order": self._send_order,
            "sweep": self._sweep,
            "give_up": self._give_up,
            "enforce_memory_limit": self._enforce_memory_limit,
        }

    def serve(self) -> None:
        """Carry out the host's orders until the stream ends."""
        jobs = (self._relay.run, self._obey, self._watch, lambda: self._stream.beat(_give_up))
        for job in jobs:
            threading.Thread(target=_whole, args=(job,), daemon=True).start()
        try:
            while True:
                self._take(*self._stream.receive())
        except EOFError:
            return
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # nothing must stop this
            self._relay.close()
            if self._server is not None:
                self._server.close()

    def _take(self, kind: Kind, number: int, body: bytes) -> None:
        if kind == Kind.PACKET:
            at = 1 + body[0] * REFERENCE.size
            fds = [self._descriptor(*pair) for pair in REFERENCE.iter_unpack(body[1:at])]
            self._relay.deliver(number, body[at:], fds)
        elif kind == Kind.CLOSE:
            self._relay.end(number)
        elif kind == Kind.CREDIT:
            self._relay.credit(number, int.from_bytes(body, "little"))
        elif kind == Kind.PIECE:
            self._values.add(number, body[:20], memoryview(body)[20:])
        elif kind == Kind.ORDER:
            self._order(json.loads(body))

    def _order(self, order: dict[str, Any]) -> None:
        """Carry out quick orders at once, which keeps them in order; leave the rest to another thread."""
        carrier = self._carriers.get(order.get("handle", 0))
        if order["t"] == "signal":
            if carrier is not None:
                carrier.handle.signal(order["number"])
        elif order["t"] == "release":
            if carrier is not None:
                self._release(order["handle"], carrier)
        else:
            self._orders.put(order)

    def _descriptor(self, kind: int, reference: bytes) -> int:
        return (
            self._new_channel(*NUMBER.unpack(reference)) if kind == CHANNEL else self._values.descriptor(reference)
        )

    def _new_channel(self, number: int) -> int:
        """Return the end of a new channel that a worker is to be given."""
        ours, theirs = wire.pair()
        self._relay.add(number, ours)
        return theirs.detach()

    def _report(self, **report: object) -> None:
        self._stream.send(Kind.ORDER, 0, json.dumps(report).encode())

    # In a thread of its own, so that the stream is read meanwhile

    def _obey(self) -> NoReturn:
        while True:
            order = self._orders.get()
            try:
                answer = self._jobs[order["t"]](**order["arguments"])
            except (OSError, ValueError, KeyError) as error:
                kind = next(
                    kind.__name__ for kind in (NoRung, TimeoutError, OSError, Exception) if isinstance(error, kind)
                )
                self._report(t="failed", id=order["id"], kind=kind, error=str(error))
            else:
                self._report(t="done", id=order["id"], answer=answer)

    @property
    def _running(self) -> ForkServer:
        if self._server is None:
            raise OSError("no fork server was started")
        return self._server

    def _start(
        self, packages: list[str] | None, confinement: dict[str, Any], trusts: list[str]
    ) -> dict[str, object]:
        made = recipe(packages, _policy(confinement), trusts=frozenset(trusts))
        self._server = server = made.start()
        return {
            "layers": sorted(server.layers),
            "missing": {**server.missing},
            "importable": [*server.importable],
            "packages": sorted(server.packages),
            "readable": [*server.readable],
        }

    @staticmethod
    def _doctor(packages: list[str] | None, confinement: dict[str, Any], trusts: list[str]) -> dict[str, object]:
        made = recipe(packages, _policy(confinement), trusts=frozenset(trusts))
        return asdict(diagnosis.diagnose(made))

    def _scratch(self) -> str:
        return self._running.new_scratch()

    def _drop(self, path: str) -> None:
        self._running.drop_scratch(path)

    def _lacking(self, session: str, digests: list[str]) -> list[str]:
        return [digest.hex() for digest in self._values.lacking(session, list(map(bytes.fromhex, digests)))]

    def _spawn(self, order: dict[str, JSON], limits: dict[str, int], channel: int) -> tuple[int, int]:
        end = self._new_channel(channel)
        try:
            pid, handle = self._running.spawn(order, WorkerLimits(**limits), end)
        finally:
            os.close(end)
        return pid, self._carried(handle, str(order["session"]), limits["memory_bytes"])

    def _watched(self, order: dict[str, JSON], limits: dict[str, int]) -> int:
        handle = self._running.watched(order, WorkerLimits(**limits))
        return self._carried(handle, str(order["session"]), limits["memory_bytes"])

    def _send_order(self, order: str, arguments: dict[str, JSON], seconds: float | None) -> None:
        if seconds is None:
            self._running.send_order(order, arguments)
        else:
            self._running.send_order(order, arguments, seconds)
        if order == "kill":
            self._values.release(str(arguments["session"]))

    def _sweep(self, handle: int) -> None:
        self._carriers[handle].handle.sweep()

    def _give_up(self, handle: int, copies: list[int], others: list[int], limit: int) -> Eviction:
        return self._carriers[handle].handle.give_up(copies, self._handles(others), limit)

    def _enforce_memory_limit(self, handle: int, copies: list[int], others: list[int], limit: int) -> int:
        first, *rest = self._handles([handle, *others])
        return first.enforce_memory_limit(copies, rest, limit)

    def _handles(self, numbers: list[int]) -> list[LocalHandle]:
        return [self._carriers[number].handle for number in numbers if number in self._carriers]

    # The processes that carry sessions

    def _carried(self, handle: LocalHandle, session: str, memory_bytes: int) -> int:
        self._numbers += 1
        number = self._numbers
        self._carriers[number] = Carrier(handle, session, memory_bytes)
        self._relay.watch(handle.fileno(), lambda: self._ended(number, handle))
        return number

    def _ended(self, number: int, handle: LocalHandle) -> None:
        self._relay.forget(handle.fileno())
        self._report(t="ended", handle=number)

    def _release(self, number: int, carrier: Carrier) -> None:
        del self._carriers[number]
        self._reported.pop(number, None)
        self._relay.forget(carrier.handle.fileno())
        carrier.handle.close()

    def _watch(self) -> NoReturn:
        """Report to the host the CPU time of each active session, and sessions that take too much memory."""
        while True:
            threading.Event().wait(_LOOK_SECONDS)
            carriers = dict(self._carriers)
            for number, (handle, session, limit) in carriers.items():
                others = [
                    other.handle
                    for other in carriers.values()
                    if other.session == session and other.handle is not handle
                ]
                seen = (handle.cpu_seconds(), handle.memory_over(others, limit))
                if seen[1] or seen != self._reported.get(number, (0.0, 0)):
                    self._reported[number] = seen
                    self._report(t="seen", handle=number, cpu_seconds=seen[0], memory_over=seen[1])


def _policy(named: dict[str, Any]) -> ConfinementPolicy:
    layers = named.pop("layers")
    return ConfinementPolicy(**named, layers=None if layers is None else frozenset(layers))


def _whole(job: Callable[[], object]) -> None:
    """Run a job that must not end before this process."""
    try:
        job()
    finally:
        _give_up("a thread of the far end has ended")


def _give_up(_why: str) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _leave(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit


def main(folder: str) -> NoReturn:
    """Serve the host at the other end of stdin and stdout.

    Args:
        folder: The folder of the modules, which is removed at the end.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_SH)  # it is not stale; see `host.scratch`
    reads, writes = os.dup(0), os.dup(1)
    os.write(writes, GREETING)
    os.dup2(2, 1)  # whatever prints here must not break the stream
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        FarEnd(Stream(reads, writes)).serve()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)
