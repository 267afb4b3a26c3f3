"""What the processes of a session share, while several threads use and end it."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from rlm_dspy.interpreters.confinement.limits import WorkerLimits
from rlm_dspy.interpreters.host import input_transfer
from rlm_dspy.interpreters.host.input_transfer import Forms
from rlm_dspy.interpreters.host.processes import LocalWatch
from rlm_dspy.interpreters.host.worker_connection import WorkerConnection
from rlm_dspy.interpreters.host.worker_group import Group
from tests.interpreters.waiting import PATIENCE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the confinement is of Linux")


class HeldUp:
    """A fork server that carries out its first order only when a second one has come, or is kept waiting."""

    watch = LocalWatch(0)

    def __init__(self) -> None:
        self.first_is_there, self.second_is_there = threading.Event(), threading.Event()
        self.done: list[int] = []

    def drop_scratch(self, _path: str) -> None:
        """There is none."""

    def hold(self, *_: object) -> None:
        """Do nothing."""

    def send_order(self, _order: str, arguments: dict[str, int], _seconds: float) -> None:
        if self.first_is_there.is_set():
            self.second_is_there.set()
        else:
            self.first_is_there.set()
            self.second_is_there.wait(0.5)
        self.done.append(arguments["mapped"])


def test_a_long_answer_after_the_end_of_its_session_is_given_back() -> None:
    """A tool may return later; nothing keeps the shared memory of its answer."""
    server: Any = HeldUp()
    group, text = Group(server, WorkerLimits(), ""), "x" * 1_000_000
    process, theirs = WorkerConnection.new()
    group.leave()
    with theirs, closing(process), closing(Forms(frozenset())) as forms:
        forms.add("value", text)
        with pytest.raises(OSError, match="session has ended"):
            group.make_room(process, forms)
    assert id(text) not in input_transfer._all


def test_room_for_two_values_at_once_is_ordered_in_turn() -> None:
    """The order with the smaller sum never comes last: it would take the room of the other value away."""
    server: Any = HeldUp()
    group = Group(server, WorkerLimits(), "")
    process, theirs = WorkerConnection.new()

    def make_room(value: bytes) -> None:
        with closing(Forms(frozenset())) as forms:
            forms.add("value", value)
            group.make_room(process, forms)

    with theirs, closing(process), ThreadPoolExecutor(2) as pool:
        first = pool.submit(make_room, b"a" * 100_000)
        server.first_is_there.wait(PATIENCE)
        pool.submit(make_room, b"b" * 100_000).result(PATIENCE)
        first.result(PATIENCE)
    for shared in group._shared:
        shared.release()
    assert server.done == sorted(server.done)
    assert len(server.done) == 2


class ClosedMeanwhile:
    """A process that another thread closes after its handle was looked at so many times."""

    def __init__(self, looks: int) -> None:
        self.handles: list[object] = [object()] * looks

    @property
    def handle(self) -> object:
        """The handle, or None once it was taken."""
        return self.handles.pop() if self.handles else None


@pytest.mark.parametrize("looks", [1, 2, 3])
def test_a_process_that_is_closed_while_the_watch_looks_does_not_end_the_watch(looks: int) -> None:
    """It never sees None in place of a handle, which would end its thread, and with it the limit of memory."""
    server: Any = HeldUp()
    group = Group(server, WorkerLimits(), "")
    process: Any = ClosedMeanwhile(looks)
    group._add_carrier(process)
    assert None not in group._handles()
