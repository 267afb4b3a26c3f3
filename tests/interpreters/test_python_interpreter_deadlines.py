"""One deadline rules a cell, its calls, their answers and every wait of the host, whatever the worker sends."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy.interpreters.base import CellError
from rlm_dspy.interpreters.confinement_policy import ConfinementPolicy
from rlm_dspy.interpreters.host import fork_server_client as forkserver
from rlm_dspy.interpreters.host import servers
from rlm_dspy.interpreters.host.deadlines import MOST_BYTES_AT_ONCE, CellLimits, Clock, Deadline
from rlm_dspy.interpreters.host.worker_connection import WorkerConnection
from rlm_dspy.interpreters.python import PythonInterpreter
from rlm_dspy.interpreters.worker import wire
from tests.interpreters.waiting import computes, sends, unhurried

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the confinement is of Linux")

CELL, GRACE = 0.5, 0.5
SLACK = 6.0
"""What a busy machine may take for the rest: waking the checkpoint, starting threads."""

FORGE = """
import json, os, socket, stat, struct, threading, time
def _is(f):
    try: return stat.S_ISSOCK(os.fstat(f).st_mode)
    except OSError: return False
socks = [socket.socket(fileno=os.dup(f)) for f in range(3, 64) if _is(f)]
def packet(data, last=1, number=0): return struct.pack('<BI', last, number) + data
def send(data):
    for s in socks: s.send(data)
def frame(**given): return packet(json.dumps(given).encode())
def call(name='quick', *args, number=1): return frame(t='call', id=number, name=name, args=list(args), kwargs={})
def stubborn(what):
    while True:
        try:
            while True: what()
        except BaseException: pass
"""
FLOODS = {
    "calls": "stubborn(lambda: send(call()))",
    "calls whose answers are read": "stubborn(lambda: (send(call()), socks[0].recv(1 << 17)))",
    "calls of a tool that is not there": "stubborn(lambda: (send(call('none')), socks[0].recv(1 << 17)))",
    "calls of many threads": (
        "def work():\n    while True: quick()\n"
        "for _ in range(20): threading.Thread(target=work, daemon=True).start()\nstubborn(quick)"
    ),
    "calls while the cell computes": (
        "def work():\n    while True: quick()\n"
        "threading.Thread(target=work, daemon=True).start()\nstubborn(lambda: None)"
    ),
    "calls that wait": (
        "for _ in range(100): threading.Thread(target=slow, daemon=True).start()\nstubborn(lambda: None)"
    ),
    "answers to orders that nobody gave": "stubborn(lambda: send(frame(t='bound', id=1)))",
    "copies that nobody ordered": "stubborn(lambda: send(frame(t='copied', id=1)))",
    "large calls": "c = call('quick', 'x' * 100_000)\nstubborn(lambda: (send(c), socks[0].recv(1 << 17)))",
    "a huge frame by and by": "stubborn(lambda: (send(packet(b' ' * (120 * 1024), 0)), time.sleep(0.05)))",
    "answers that nobody reads": "for _ in range(40): send(call('large'))\nstubborn(lambda: None)",
    "answers that are read slowly": (
        "for _ in range(100): send(call('large'))\nstubborn(lambda: (time.sleep(0.2), socks[0].recv(1 << 17)))"
    ),
}


@pytest.fixture
def release() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def repl(release: threading.Event) -> Iterator[PythonInterpreter]:
    tools: dict[str, Any] = {
        "quick": lambda *_: None,
        "large": lambda: "x" * 30_000,
        "slow": lambda: release.wait(60),
    }
    with PythonInterpreter(
        tools, packages=(), cell_limits=CellLimits(seconds=CELL, grace_seconds=GRACE), checkpoint="always"
    ) as made:
        with unhurried(made):
            made.execute(FORGE + "state = 1")
        yield made


@contextmanager
def within(seconds: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


@pytest.mark.parametrize("flood", FLOODS)
def test_a_cell_ends_at_its_deadline_whatever_it_sends(repl: PythonInterpreter, flood: str) -> None:
    """And the next cell runs at once, on the state before it."""
    with within(CELL + GRACE + SLACK), pytest.raises(CellError):
        repl.execute(FLOODS[flood])
    with within(SLACK), unhurried(repl):
        assert repl.execute("state") == 1


@pytest.mark.parametrize("flood", ["calls of many threads", "calls while the cell computes"])
def test_what_a_cell_computes_counts_while_calls_are_under_way(flood: str) -> None:
    """A call that is always under way does not stop `busy_seconds`."""
    with PythonInterpreter(
        {"quick": lambda: time.sleep(0.001)},
        packages=(),
        cell_limits=CellLimits(busy_seconds=1, grace_seconds=GRACE),
        checkpoint="always",
    ) as repl:
        repl.execute(FORGE + "state = 1")
        with within(30), pytest.raises(CellError, match="computed for longer than 1 s"):
            repl.execute(FLOODS[flood])
        assert repl.execute("state") == 1


def test_a_call_that_waits_is_not_computing() -> None:
    """Nor are many at once."""
    tools = {"slow": lambda: time.sleep(1.5)}
    with PythonInterpreter(
        tools, packages=(), cell_limits=CellLimits(busy_seconds=1, grace_seconds=GRACE)
    ) as repl:
        code = "from concurrent.futures import ThreadPoolExecutor\n"
        assert (
            repl.execute(
                code + "with ThreadPoolExecutor(8) as p: print(len(list(p.map(lambda _: slow(), range(8)))))"
            )
            == "8"
        )


def test_put_ends_while_a_thread_floods(repl: PythonInterpreter) -> None:
    """A thread that the last cell has left sends calls without end."""
    with unhurried(repl):
        repl.execute(
            "def flood():\n    while True: send(call())\n"
            "def start():\n    time.sleep(0.3)\n    flood()\n"
            "threading.Thread(target=start, daemon=True).start()"
        )
        assert sends(repl)
        with within(12 + SLACK), contextlib.suppress(CellError):  # its answer may get through all the same
            repl.put(n=1)
        with within(12 + SLACK), contextlib.suppress(CellError):  # if it did, this ends the flood at the latest
            repl.execute("time.sleep(1)")
        assert repl.execute("state") == 1


def test_put_keeps_the_calls_of_threads(repl: PythonInterpreter) -> None:
    """A thread that the last cell has left calls a tool while `put` waits: it has its answer in the next cell."""
    with unhurried(repl):
        repl.execute(
            "results = []\ndef work():\n    time.sleep(0.2)\n    results.append(large())\n"
            "thread = threading.Thread(target=work)\nthread.start()"
        )
        assert sends(repl)
        repl.put(n=1)
        assert repl.execute("thread.join()\nlen(results[0]), n") == [30000, 1]


def test_a_worker_that_reads_no_cell_is_replaced(repl: PythonInterpreter) -> None:
    """A thread of the last cell holds Python's lock for good: the next cell waits no longer than it may run."""
    with unhurried(repl):
        repl.execute("state = 2")
        repl.execute("threading.Timer(0.1, lambda: sum(range(10 ** 12))).start()")
        assert computes(repl)
    with within(CELL + GRACE + SLACK), pytest.raises(CellError, match=r"longer than 0\.5 s"):
        repl.execute("1")
    with unhurried(repl):
        assert repl.execute("state") == 2


def test_unread_answers_do_not_hold_the_next_cell_up(repl: PythonInterpreter) -> None:
    """They fill the socket, and a thread of the last cell holds Python's lock so that nobody reads them."""
    with unhurried(repl):
        repl.execute(
            "for _ in range(60): send(call('large'))\nthreading.Timer(0.2, lambda: sum(range(10 ** 12))).start()"
        )
        assert computes(repl)
    with within(CELL + GRACE + SLACK), pytest.raises(CellError):
        repl.execute("1")
    with unhurried(repl):
        assert repl.execute("state") == 1


def test_calls_that_wait_hold_only_so_much_memory(repl: PythonInterpreter, release: threading.Event) -> None:
    """The host reads no further call until one is answered; none is lost."""
    held: list[int] = []
    most = 0

    def take(text: str) -> int:
        nonlocal most
        held.append(len(text))
        most = max(most, sum(held))
        release.wait(0.3)
        held.remove(len(text))
        return len(text)

    repl.tools["take"] = take
    with PythonInterpreter({"take": take}, packages=()) as patient:
        code = "from concurrent.futures import ThreadPoolExecutor\nt = 'x' * (50 << 20)\n"
        assert patient.execute(code + "with ThreadPoolExecutor(8) as p: print(sum(p.map(take, [t] * 8)))") == str(
            8 * (50 << 20)
        )
    assert most <= MOST_BYTES_AT_ONCE + (50 << 20)


def test_a_cell_may_call_only_so_often() -> None:
    """A million calls, or 4 GB: then it is due."""
    clock = Clock(CellLimits(None, None, 1.0))
    for _ in range(1_000_000):
        clock.call_starts(1)
        clock.call_ends()
        clock.call_answered(1)
    assert clock.left() > 0
    clock.call_starts(1)
    assert clock.left() <= 0
    assert clock.reason == "called functions more than 1,000,000 times"
    clock = Clock(CellLimits(None, None, 1.0))
    for size in (4 << 30, 1):
        assert clock.left() > 0
        clock.call_starts(size)
    assert clock.left() <= 0
    assert clock.reason == "passed more than 4 GB to functions"


def in_thread(job: Any) -> tuple[threading.Thread, list[BaseException | Any]]:
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(job())
        except dspy.CodeInterpreterError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


@pytest.mark.parametrize(
    "code", ["ran()\nwhile True: pass", "ran()\nslow()"], ids=["computes", "waits for a tool"]
)
def test_shutting_down_ends_a_cell_that_runs(release: threading.Event, code: str) -> None:
    """From another thread; `execute` says so, and nothing of the session is open any more."""
    running = threading.Event()
    repl: Any = PythonInterpreter({"ran": running.set, "slow": lambda: release.wait(60)}, packages=())
    repl.execute("1")
    thread, outcome = in_thread(lambda: repl.execute(code))
    assert running.wait(20)
    with within(SLACK):
        repl.shutdown()
        thread.join()
    assert type(outcome[0]) is dspy.CodeInterpreterError
    assert "shut down" in str(outcome[0])
    assert repl._session._released
    repl.interrupt()


def test_a_tool_that_is_stopped_after_its_session_touches_no_file_of_others(release: threading.Event) -> None:
    """The descriptor that wakes the session may be another's by then."""
    running = threading.Event()

    def tool() -> None:
        running.set()
        release.wait(20)
        raise KeyboardInterrupt

    repl = PythonInterpreter({"tool": tool}, packages=(), cell_limits=CellLimits(seconds=1, grace_seconds=0.3))
    repl.start()
    with pytest.raises(CellError):
        repl.execute("tool()")
    assert running.is_set()
    repl.shutdown()
    reader, writer = os.pipe()
    others = [os.dup(writer) for _ in range(30)]
    release.set()
    time.sleep(0.3)
    os.set_blocking(reader, False)
    with pytest.raises(BlockingIOError):
        os.read(reader, 100)
    for fd in (reader, writer, *others):
        os.close(fd)


def test_threads_that_start_one_interpreter_start_it_once() -> None:
    """And share its session."""
    repl: Any = PythonInterpreter(packages=())
    together, sessions = threading.Barrier(6), []

    def start() -> None:
        together.wait()
        repl.start()
        sessions.append(repl._session)

    threads = [in_thread(start)[0] for _ in range(6)]
    for thread in threads:
        thread.join()
    assert len({id(session) for session in sessions}) == 1
    repl.shutdown()


@contextmanager
def interrupted_after(seconds: float, again: float = 0.0) -> Iterator[None]:
    """Raise KeyboardInterrupt here, as Ctrl-C does, and every `again` seconds if that is given."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds, again)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "operation", [lambda repl: repl.put(n=1), lambda repl: repl.fork(2), lambda repl: repl.put(t="x" * 100_000)]
)
def test_an_interrupt_while_an_order_is_carried_out_costs_nothing(operation: Any) -> None:
    """Its answer comes late, and the next cell does not take it for its own."""
    with PythonInterpreter(packages=(), checkpoint="always") as repl:
        repl.execute(FORGE + "state = 1")
        session: Any = repl._session
        repl.execute("threading.Timer(0.1, lambda: sum(range(10 ** 8))).start()")
        assert computes(repl)
        with pytest.raises(KeyboardInterrupt), interrupted_after(0.2):
            operation(repl)
        assert repl.execute("state = state + 1\nstate") == 2
        repl.put(n=3)
        assert repl.execute("n") == 3
        assert not session.ended


def test_an_order_to_the_fork_server_is_not_given_the_answer_of_another() -> None:
    """Its wait was interrupted: the answer comes late, and the next order drops it."""
    server = forkserver.ForkServer(forkserver.Recipe((), (), ConfinementPolicy()), frozenset())
    try:
        server._process.send_signal(signal.SIGSTOP)
        with pytest.raises(KeyboardInterrupt), interrupted_after(0.2):
            server._ask("watch", {"session": "none", "group": 1, "pid": 1})
        with pytest.raises(TimeoutError), within(SLACK):
            server._ask("kill", {"session": "none", "group": 1}, seconds=0.2)
        server._process.send_signal(signal.SIGCONT)
        answer, handles = server._ask("kill", {"session": "none", "group": 1})
        assert (answer["t"], handles) == ("done", [])
        assert server.alive
    finally:
        server._process.send_signal(signal.SIGCONT)
        server.close()


def serving(server: Any) -> int:
    """Return the process that serves: in namespaces of its own it is a child of the one that was started."""
    pid = server._process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if "namespaces" in server.layers else pid


def test_a_cell_waits_for_a_fork_server_no_longer_than_it_may_run() -> None:
    """It did not run, and the session goes on when the fork server does."""
    recipe = forkserver.Recipe((), (), ConfinementPolicy())
    stopped = serving(servers.server_for(recipe))
    with PythonInterpreter(packages=(), cell_limits=CellLimits(seconds=CELL, grace_seconds=GRACE)) as repl:
        with unhurried(repl):
            repl.execute("state = 1")
        os.kill(stopped, signal.SIGSTOP)
        try:
            with within(CELL + SLACK), pytest.raises(CellError, match="did not run"):
                repl.execute("state = 2", {"t": "x" * 100_000})
        finally:
            os.kill(stopped, signal.SIGCONT)
        with unhurried(repl):
            assert repl.execute("state") == 1
            assert repl.execute("len(t)", {"t": "x" * 100_000}) == 100_000


def test_a_second_interrupt_does_not_leave_a_cell_running() -> None:
    """Ctrl-C twice on a cell that ignores the first: the next cell runs on the state before it."""

    def ignoring() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.1, 0.2)

    with PythonInterpreter(
        {"ignoring": ignoring}, packages=(), cell_limits=CellLimits(grace_seconds=50), checkpoint="always"
    ) as repl:
        repl.execute(FORGE + "state = 1")
        code = (
            "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))\nignoring()\nwhile True: pass"
        )
        with pytest.raises(KeyboardInterrupt), within(20), interrupted_after(60):
            repl.execute(code)
        with within(SLACK), pytest.raises(CellError, match="did not run"):
            repl.execute("1")
        assert repl.execute("state") == 1


def test_a_payload_that_is_torn_ends_its_process() -> None:
    """What follows would be read as its rest."""
    process, theirs = WorkerConnection.new()
    with theirs:
        with pytest.raises(TimeoutError), within(SLACK):
            process.send({"t": "x" * 5_000_000}, Deadline(0.3).left)
        theirs.recv(wire.PACKET * 2)
        with pytest.raises(BrokenPipeError, match="cut off"):
            process.send({"t": "next"}, Deadline(1).left)
    process.close()
