"""Ctrl-C at any step of the host's side of a session leaves every lock free for the next call, in any thread."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import pytest

from rlm_dspy.concurrency import turn
from rlm_dspy.interpreters import LocalPythonInterpreter, base, local
from rlm_dspy.interpreters.confinement.limits import WorkerLimits
from rlm_dspy.interpreters.confinement_policy import ConfinementPolicy
from rlm_dspy.interpreters.host import deadlines, fork_server_client, servers, worker_connection, worker_group
from rlm_dspy.interpreters.host.deadlines import Deadline
from rlm_dspy.interpreters.host.fork_server_client import Recipe
from rlm_dspy.interpreters.host.input_transfer import Forms
from rlm_dspy.interpreters.host.processes import LocalWatch
from rlm_dspy.interpreters.host.worker_connection import WorkerConnection
from rlm_dspy.interpreters.host.worker_group import Group
from tests.interrupting import interrupted_everywhere

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the confinement is of Linux")


@on_linux
def test_the_fork_server_takes_orders_after_an_interrupt() -> None:
    """It belongs to all sessions of the process."""
    server: Any = servers.server_for(Recipe((), (), ConfinementPolicy()))

    def order(_: object) -> None:
        server.send_order("kill", {"session": "none", "group": 0})

    assert interrupted_everywhere(object, order, order, fork_server_client, deadlines) > 5


@on_linux
def test_a_worker_is_sent_frames_after_an_interrupt() -> None:
    """Or they are refused, if a frame was cut off."""
    ends = contextlib.ExitStack()

    def made() -> WorkerConnection:
        process, theirs = WorkerConnection.new()
        ends.enter_context(theirs)
        ends.callback(process.close)
        return process

    def send(process: WorkerConnection) -> None:
        process.send({"t": "cell"}, Deadline(10).left)

    def is_sent_or_refused(process: WorkerConnection) -> None:
        with contextlib.suppress(BrokenPipeError):
            send(process)

    with ends:
        assert interrupted_everywhere(made, send, is_sent_or_refused, worker_connection, deadlines) > 5


class NoServer:
    """Stands where a fork server was."""

    watch = LocalWatch(0)

    def hold(self, *_: object) -> None:
        """Do nothing."""

    def send_order(self, *_: object) -> None:
        """Do nothing."""


@on_linux
def test_room_for_values_is_ordered_after_an_interrupt() -> None:
    server: Any = NoServer()
    process, theirs = WorkerConnection.new()

    def made() -> Group:
        return Group(server, WorkerLimits(), "")

    def make_room(group: Group) -> None:
        forms = Forms(frozenset())
        forms.mapped = 1
        group.make_room(process, forms)

    with theirs, contextlib.closing(process):
        assert interrupted_everywhere(made, make_room, make_room, worker_group, deadlines) > 5


def test_an_interpreter_runs_cells_after_an_interrupt() -> None:
    """It does not take the interrupted cell for one that runs."""

    def runs(repl: LocalPythonInterpreter) -> None:
        assert repl.execute("1 + 1") == 2

    assert interrupted_everywhere(LocalPythonInterpreter, runs, runs, base, turn) > 5


def test_a_process_has_its_streams_and_folder_back_after_an_interrupt_in_this_process() -> None:
    """Whether it comes at the begin of a cell, in it or at its end."""
    found = sys.stdout, sys.stderr, sys.modules["__main__"], local._directory()

    def runs(repl: LocalPythonInterpreter) -> None:
        repl.execute("import os\nos.chdir('/')\n1")

    def is_as_found(_: LocalPythonInterpreter) -> None:
        assert (sys.stdout, sys.stderr, sys.modules["__main__"], local._directory()) == found

    assert interrupted_everywhere(LocalPythonInterpreter, runs, is_as_found, local) > 5
