"""A worker's channel to the host, when an interrupt arrives at any point of its code."""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from rlm_dspy.interpreters.worker import channel as channel_module
from rlm_dspy.interpreters.worker import wire
from rlm_dspy.interpreters.worker.channel import Channel, Interrupts

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from types import FrameType

_TRACED = (channel_module.__file__, threading.__file__)


class SignalAtLine:
    """Sends this process a SIGINT before line `number` that the code of the channel and its locks runs."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in _TRACED:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)
        return self


@contextmanager
def traced(tracer: SignalAtLine) -> Iterator[None]:
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        yield
    finally:
        sys.settrace(before)


@contextmanager
def channel_and_host() -> Iterator[tuple[Channel, Interrupts, socket.socket]]:
    handler = signal.getsignal(signal.SIGINT)
    host, worker = wire.pair()
    interrupts = Interrupts()
    try:
        with host, worker:
            yield Channel(worker, interrupts), interrupts, host
    finally:
        signal.signal(signal.SIGINT, handler)


def called(tracer: SignalAtLine) -> tuple[bool, list[Any]]:
    """Call a tool that has answered already; return whether that was interrupted, and the order read after it."""
    interrupted = False
    with channel_and_host() as (channel, interrupts, host):
        wire.send(host, wire.encoded({"t": "answer", "id": 1, "value": {"json": "told"}}))
        interrupts.in_cell = True
        try:
            with traced(tracer):
                channel.call("tool", [], {})
        except KeyboardInterrupt:
            interrupted = True
        interrupts.in_cell = False
        interrupts.forget()
        wire.send(host, wire.encoded({"t": "bind", "id": 2, "values": {}}))
        orders: list[Any] = []
        reader = threading.Thread(target=lambda: orders.append(channel.next_order()), daemon=True)
        reader.start()
        reader.join(20)
    return interrupted, [order["id"] for order, _ in orders]


def test_an_interrupt_anywhere_in_a_call_leaves_the_channel_to_other_threads_and_orders() -> None:
    """It is raised in the cell, or dropped after the call; nobody waits for a turn that never comes."""
    interrupts, tracers = 0, [SignalAtLine(0)]
    while tracers[-1].left <= 0:
        line = len(tracers)
        tracers.append(SignalAtLine(line))
        interrupted, orders = called(tracers[-1])
        assert orders == [2], f"interrupted at line {line}"
        interrupts += interrupted
    assert interrupts > len(tracers) / 2


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
