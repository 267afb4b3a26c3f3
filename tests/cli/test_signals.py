"""Signals to the process of the command line, sent to this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from rlm_dspy.cli import main, signals
from rlm_dspy.interpreters.python import PythonInterpreter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm_dspy.interpreters.host.fork_server_client import ForkServer

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def _as_in_a_new_process() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in NUMBERS}
    for number in NUMBERS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_that_ends_is_a_ctrl_c_with_its_own_exit_code(number: signal.Signals, code: int) -> None:
    @signals.ended_as_by_ctrl_c()
    def command() -> None:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        signal.raise_signal(number)  # to the group of the process as well
        sys.exit(130)

    with pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == code
    assert signal.getsignal(number) is signal.SIG_DFL


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_that_ends_a_chat_ends_it_once(number: signal.Signals, code: int) -> None:
    @signals.ended_at_once()
    def command() -> None:
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(number)

    with pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == code


@pytest.mark.parametrize("scope", [signals.ended_as_by_ctrl_c, signals.ended_at_once])
def test_a_command_below_nohup_outlives_its_terminal(scope: type) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with scope():
        signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.parametrize("number", NUMBERS)
def test_no_signal_changes_an_exit_code_that_is_known(number: signal.Signals) -> None:
    with pytest.raises(SystemExit) as ended, signals.exit_code_kept():
        sys.exit(0)
    signal.raise_signal(number)
    assert ended.value.code == 0


def test_a_process_that_a_signal_finds_at_its_end_ends_with_its_exit_code() -> None:
    """Also after Python has taken its handlers back, while objects are collected."""
    program = (
        "import os, signal, sys\nfrom rlm_dspy.cli.signals import exit_code_kept\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Late:\n    def __del__(self, kill=os.kill, pid=os.getpid()): kill(pid, 2)\n"
        "sys.late = Late()\n"
        "with exit_code_kept(): sys.exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_ctrl_c_while_the_command_line_is_imported_ends_it_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "rlm_dspy.cli.app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "rlm_dspy.cli.app", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130


@pytest.mark.skipif(sys.platform != "linux", reason="the confinement is of Linux")
def test_ctrl_c_at_a_terminal_does_not_reach_the_processes_that_hold_the_variables() -> None:
    """The terminal signals the group of the command; the fork server, with which all workers end, has another."""
    with PythonInterpreter(packages=()) as repl:
        assert repl.execute("kept = 1") is None
        assert repl._session is not None
        server: ForkServer = repl._session.group.server  # type: ignore[assignment]
        assert os.getpgid(server._process.pid) != os.getpgrp()
