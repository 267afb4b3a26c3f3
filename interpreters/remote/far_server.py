"""A fork server on another machine, as the interpreters of this one see it."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

from rlm_dspy.interpreters.confinement.namespaces import OWN_SCRATCH
from rlm_dspy.interpreters.remote.link import Link

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rlm_dspy.interpreters.confinement.limits import WorkerLimits
    from rlm_dspy.interpreters.remote.carrier import Transport
    from rlm_dspy.interpreters.remote.link import FarHandle
    from rlm_dspy.interpreters.worker.wire import JSON

START_SECONDS = 150
"""Longer than the stream waits for a greeting, whose time-out has the better message."""


class FarServer:
    """A fork server on another machine; see `host.servers.Server`.

    Args:
        transport: The started far end.
        asked: The settings of the fork server: the arguments of the far end's `start`.

    Raises:
        NoRung: If it cannot hold there what is required.
        OSError: If it does not start; the message holds what it printed.
    """

    def __init__(self, transport: Transport, asked: Mapping[str, object]) -> None:
        self._link = Link(transport)
        self.watch = self._link.watch
        with ExitStack() as undo:
            undo.callback(self._link.close)
            try:
                report = self._link.ask("start", asked, START_SECONDS)
            except ConnectionError:
                raise
            except OSError as error:
                raise type(error)(f"{transport.name}: {error}") from None
            undo.pop_all()
        self.layers = frozenset[str](report["layers"])
        self.missing: dict[str, str] = report["missing"]
        self.importable: list[str] = report["importable"]
        self.packages = frozenset[str](report["packages"])
        self.readable: list[str] = report["readable"]

    @property
    def alive(self) -> bool:
        """Whether it still accepts orders."""
        return self._link.is_own and not self._link.lost

    @property
    def lost(self) -> str:
        """Why the connection is gone; empty while it lives."""
        return self._link.lost

    def new_scratch(self) -> str:
        """Return a fresh folder for one worker there; the name alone where a worker makes its own."""
        return OWN_SCRATCH if "namespaces" in self.layers else str(self._link.ask("scratch", {}))

    def drop_scratch(self, path: str) -> None:
        """Remove it."""
        if "namespaces" not in self.layers:
            with suppress(OSError):
                self._link.ask("drop", {"path": path})

    def spawn(self, order: Mapping[str, JSON], limits: WorkerLimits, end: int) -> tuple[int, FarHandle]:
        """Start a worker there; return its number where the fork server lives, and a handle."""
        channel = self._link.open(end)
        arguments = {"order": {**order}, "limits": asdict(limits), "channel": channel}
        pid, number = self._link.ask("spawn", arguments)
        return pid, self._link.handle(number)

    def watched(self, order: Mapping[str, JSON], limits: WorkerLimits) -> FarHandle:
        """Return a handle on a copy of a worker."""
        return self._link.handle(self._link.ask("watched", {"order": {**order}, "limits": asdict(limits)}))

    def hold(self, session: str, fds: Sequence[int], seconds: float) -> None:
        """Send the values that the far end does not have yet."""
        self._link.hold(session, fds, seconds)

    def send_order(self, order: str, arguments: Mapping[str, JSON], seconds: float | None = None) -> None:
        """Send an order without a result, and wait until it is done."""
        self._link.ask("order", {"order": order, "arguments": {**arguments}, "seconds": seconds})

    def close(self) -> None:
        """End the connection and all that runs at its far end."""
        self._link.close()
