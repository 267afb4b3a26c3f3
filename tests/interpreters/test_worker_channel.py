"""A worker's channel to the host, when an interrupt arrives at any point of its code."""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest

from rlm_dspy.interpreters.worker import channel as channel_module
from rlm_dspy.interpreters.worker import wire
from rlm_dspy.interpreters.worker.channel import Channel, Interrupts
from tests.interrupting import interrupted_everywhere

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from rlm_dspy.interpreters.worker.frames import Order


class Ends(NamedTuple):
    """The two ends of a worker's socket."""

    channel: Channel
    interrupts: Interrupts
    host: socket.socket


@contextmanager
def channel_and_host() -> Iterator[Ends]:
    handler = signal.getsignal(signal.SIGINT)
    host, worker = wire.pair()
    interrupts = Interrupts()
    try:
        with host, worker:
            yield Ends(Channel(worker, interrupts), interrupts, host)
    finally:
        signal.signal(signal.SIGINT, handler)


def test_an_interrupt_at_any_step_of_a_call_leaves_the_channel_to_other_threads_and_orders() -> None:
    """It is raised in the cell; nobody waits for a turn that never comes."""
    raised: list[KeyboardInterrupt] = []

    def answered() -> Ends:
        ends = opened.enter_context(channel_and_host())
        wire.send(ends.host, wire.encoded({"t": "answer", "id": 1, "value": {"json": "told"}}))
        return ends

    def calls(ends: Ends) -> None:
        ends.interrupts.in_cell = True
        try:
            ends.channel.call("tool", [], {})
        except KeyboardInterrupt as interrupt:
            raised.append(interrupt)
        finally:
            ends.interrupts.in_cell = False

    def next_order(ends: Ends) -> Order:
        ends.interrupts.forget()
        wire.send(ends.host, wire.encoded({"t": "bind", "id": 2, "values": {}}))
        return ends.channel.next_order()[0]

    def interrupt() -> None:
        signal.raise_signal(signal.SIGINT)

    with ExitStack() as opened:
        steps = interrupted_everywhere(answered, calls, next_order, channel_module, interrupt=interrupt)
    assert len(raised) == steps > 10


@pytest.mark.parametrize("reads", [True, False], ids=["and reads", "and another thread reads"])
def test_an_interrupt_ends_the_wait_of_a_call(reads: bool) -> None:
    """While the main thread waits for an answer that does not come."""
    with channel_and_host() as (channel, interrupts, host):
        if not reads:
            threading.Thread(target=channel.call, args=("other", [], {}), daemon=True).start()
            wire.receive_packet(host)
        interrupts.in_cell = True
        main = threading.main_thread().ident or 0
        timer = threading.Timer(0.2, signal.pthread_kill, [main, signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            channel.call("tool", [], {})
        interrupts.in_cell = False
        for number in (1, 2):
            wire.send(host, wire.encoded({"t": "answer", "id": number, "value": {"json": 1}}))
        wire.send(host, wire.encoded({"t": "bind", "id": 3, "values": {}}))
        assert channel.next_order()[0]["t"] == "bind"
