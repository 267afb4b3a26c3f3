"""No frame of a worker may crash, hang or grow the host, run what is no tool, or touch another run."""

from __future__ import annotations

import json
import os
import random
import resource
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm_dspy.interpreters.base import CellError
from rlm_dspy.interpreters.confinement.limits import WorkerLimits
from rlm_dspy.interpreters.confinement_policy import GUARANTEES, RUNGS, ConfinementPolicy
from rlm_dspy.interpreters.host.deadlines import CellLimits
from rlm_dspy.interpreters.host.processes import LocalHandle, LocalWatch
from rlm_dspy.interpreters.host.servers import CannotConfine
from rlm_dspy.interpreters.host.session import Cell, Session, Settings
from rlm_dspy.interpreters.host.worker_connection import WorkerConnection
from rlm_dspy.interpreters.host.worker_group import Group
from rlm_dspy.interpreters.python import PythonInterpreter
from rlm_dspy.interpreters.worker import wire
from tests.interpreters.waiting import comes_true, descriptors

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the confinement is of Linux")

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
KINDS = st.sampled_from(["done", "call", "awake", "ready", "failed", "answer", "", "cell"])
FIELDS = {
    "t": KINDS,
    "id": st.integers(-1, 3) | JSON,
    "name": st.sampled_from(["tool", "other", "__class__"]) | JSON,
    "args": st.just([]) | JSON,
    "kwargs": st.just({}) | JSON,
    "kind": st.sampled_from(["done", "raised", "submitted", "invalid", "x"]) | JSON,
    "output": st.just("out") | JSON,
    "error": st.just("") | JSON,
    "values": st.just({}) | JSON,
    "copying": st.just(0.1) | JSON,
    "taken": st.booleans() | JSON,
    "pid": st.integers() | JSON,
}
FRAMES = st.fixed_dictionaries({}, optional=FIELDS) | st.fixed_dictionaries(FIELDS)
HERE = Path(__file__).parents[1]
FIND = (
    "import os, stat\n"
    "def _is(f):\n"
    "    try: return stat.S_ISSOCK(os.fstat(f).st_mode)\n"
    "    except OSError: return False\n"
    "fds = [f for f in range(3, 64) if _is(f)]\n"
)


class NoServer:
    """Stands where a fork server was, for a session whose worker is played by the test."""

    layers: frozenset[str] = frozenset()
    watch = LocalWatch(0)
    lost = ""

    def drop_scratch(self, _path: str) -> None:
        """There is none."""

    def hold(self, _session: str, _fds: list[int], _seconds: float) -> None:
        """There is nothing to hold."""

    def tell(self, _order: str, _arguments: wire.Frame) -> None:
        raise OSError("no fork server")


def answered(packets: list[bytes]) -> tuple[Any, list[str]]:
    """Play a worker that sends `packets` on a cell; what execute gives or raises, and the tools that ran."""
    process, theirs = WorkerConnection.new()
    child = subprocess.Popen(["sleep", "60"])
    process.handle = LocalHandle(os.pidfd_open(child.pid), LocalWatch(0), leads=True)
    server: Any = NoServer()
    session = Session(
        Group(server, WorkerLimits(), ""), process, Settings(CellLimits(1.0, None, 0.1), "off", frozenset())
    )
    ran: list[str] = []

    def invoke(name: str, _args: list[Any], _kwargs: dict[str, Any]) -> str:
        if name != "tool":
            raise dspy.CodeInterpreterError("Unknown tool")
        ran.append(name)
        return "answer"

    try:
        with theirs:
            for packet in packets:
                theirs.send(packet)
            theirs.shutdown(1)
            return session.execute(Cell("1", {}, {}, None, invoke)), ran
    except (dspy.CodeInterpreterError, CellError) as error:
        return error, ran
    finally:
        session.close()
        child.kill()
        child.wait()


def packet(payload: bytes, last: int = 1, number: int = 0) -> bytes:
    return struct.pack("<BI", last, number) + payload


@settings(max_examples=120, deadline=None)
@given(frames=st.lists(FRAMES, min_size=1, max_size=3))
def test_any_frames_end_in_a_result_or_an_error_of_the_session(frames: list[dict[str, Any]]) -> None:
    """Nothing else leaves execute, and no other name than a tool's is called."""
    outcome, ran = answered([packet(json.dumps(frame).encode()) for frame in frames])
    if isinstance(outcome, tuple):
        cell, printed = outcome
        assert cell.kind in ("done", "raised", "submitted", "invalid")
        assert isinstance(printed, str)
        assert isinstance(cell.values, dict)
    else:
        assert type(outcome) is dspy.CodeInterpreterError
    assert set(ran) <= {"tool"}


@settings(max_examples=120, deadline=None)
@given(packets=st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=4))
def test_any_bytes_end_in_an_error_of_the_session(packets: list[bytes]) -> None:
    """Also packets without a header and pieces of different frames."""
    outcome, ran = answered(packets)
    assert type(outcome) is dspy.CodeInterpreterError
    assert ran == []


@settings(max_examples=300, deadline=None)
@given(payload=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_a_payload_is_an_object_or_a_violation(payload: bytes) -> None:
    """Never another error."""
    with suppress(wire.Violation):
        assert isinstance(wire.decoded(payload), dict)


@settings(max_examples=100, deadline=None)
@given(value=st.dictionaries(st.text(), JSON, max_size=3), number=st.integers(0, 2**32 - 1))
def test_a_frame_that_is_sent_arrives(value: dict[str, Any], number: int) -> None:
    """As it was."""
    ours, theirs = wire.pair()
    with ours, theirs:
        wire.send(theirs, wire.encoded(value), number)
        payload = wire.Assembler().add(wire.receive_packet(ours))
        assert payload is not None
        assert repr(wire.decoded(payload)) == repr(json.loads(json.dumps(value)))


@pytest.mark.parametrize(
    "payload",
    [
        b"[" * 1_000_000,
        b'{"a":' * 300_000,
        b"1" * 1_000_000,
        b'{"a":[' + b"[]," * 1_100_000 + b"1]}",
        b"{}" * 9,
    ],
    ids=["deep", "deep objects", "digits", "parts", "several"],
)
def test_a_bomb_of_json_is_a_violation(payload: bytes) -> None:
    """Refused before it costs the host memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(wire.Violation):
        wire.decoded(payload)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_long_prose_is_no_bomb() -> None:
    """Commas and brackets in a text are no parts."""
    text = 'one, [two], {three}\\ " ' * 200_000
    assert wire.decoded(wire.encoded({"text": text}))["text"] == text


def test_a_frame_that_grows_for_ever_is_cut_off() -> None:
    """At its limit, whatever its end would have been."""
    piece = packet(b"x" * wire.PACKET, last=0)
    assembler = wire.Assembler(max_bytes=4 * len(piece))
    for _ in range(4):
        assert assembler.add(piece) is None
    with pytest.raises(wire.Violation, match=f"more than {4 * len(piece)} bytes"):
        assembler.add(piece)


@pytest.mark.parametrize("size", [0, 1, wire.PACKET - 1])
def test_a_frame_is_not_sent_in_crumbs(size: int) -> None:
    """Only the last piece of a frame is smaller than a packet, so a frame has few of them."""
    with pytest.raises(wire.Violation, match="too small"):
        wire.Assembler().add(packet(b"x" * size, last=0))


LARGE_VALUES = {
    "values": ("[0] * 1_100_000", "more than 1,000,000 values"),
    "bytes": ("'x' * 70_000_000", "66 MB as JSON, more than 64 MB"),
    "digits": ("10 ** 5_000", r"4,300 digits; send hex\("),
}


@pytest.mark.parametrize(("value", "said"), LARGE_VALUES.values(), ids=LARGE_VALUES)
def test_a_value_that_the_host_would_not_take_is_an_error_of_the_cell(value: str, said: str) -> None:
    """Submitted or handed to a tool; nothing of the session is lost."""
    with PythonInterpreter(tools={"ask": lambda _: 1}, packages=()) as repl:
        repl.execute("import sys; sys.set_int_max_str_digits(0); kept = 7")
        for call in ("SUBMIT", "ask"):
            with pytest.raises(CellError, match=said) as caught:
                repl.execute(f"{call}({value})")
            assert "cannot leave the REPL" in caught.value.traceback
        assert repl.execute("kept") == 7


def test_a_last_expression_that_is_too_long_for_json_is_shown() -> None:
    """Code may lift Python's limit of digits."""
    with PythonInterpreter(packages=()) as repl:
        assert repl.execute("import sys; sys.set_int_max_str_digits(0); 10 ** 5_000") == "1" + 5_000 * "0"


def test_what_ends_a_thread_is_told_by_the_lines_of_the_model() -> None:
    """No file of the host is named."""
    code = "import threading\ndef halve(n):\n    return n / 0\nt = threading.Thread(target=halve, args=(1,))"
    with PythonInterpreter(packages=()) as repl:
        printed = repl.execute(f"{code}\nt.start(); t.join()")
    assert "return n / 0" in printed
    assert printed.endswith("ZeroDivisionError: division by zero")
    assert ".py" not in printed


@pytest.mark.parametrize("start", [b"", b'{"a":"', b'["', b"[" * 9], ids=["bare", "a string", "a list", "deep"])
@pytest.mark.parametrize("part", [b'\\"', b'"', b"\\", b'\\\\"', b",", b'",', b"\n", b'"\\', b"[],"])
def test_reading_a_frame_takes_time_by_its_length_only(start: bytes, part: bytes) -> None:
    """Whatever the frame repeats: it is read or refused in a second for 8 MB."""
    began = time.process_time()
    with suppress(wire.Violation):
        wire.decoded(start + part * (8_000_000 // len(part)))
    assert time.process_time() - began < 5


def test_only_what_stands_outside_of_strings_counts_as_a_part() -> None:
    """A frame at the limit of parts is read, whatever its strings hold; one more part and it is refused."""
    chance = random.Random(3)
    texts = ["".join(chance.choices('a"\\,[{\né', k=chance.randint(0, 30))) for _ in range(3_000)]
    filling = [0] * (wire.MAX_NODES - len(texts) - 2)
    read = wire.decoded(wire.encoded({"texts": [*texts, *filling]}))["texts"]
    assert isinstance(read, list)
    assert read[: len(texts)] == texts
    with pytest.raises(wire.Violation, match="too many parts"):
        wire.decoded(wire.encoded({"texts": [*texts, *filling, 0, 0, 0]}))


def test_more_calls_than_a_worker_has_threads_are_forged() -> None:
    """They would fill the host."""
    call = json.dumps({"t": "call", "id": 1, "name": "tool", "args": [], "kwargs": {}}).encode()
    code = FIND + f"while True:\n    for f in fds: os.write(f, {packet(call)!r})"
    with PythonInterpreter({"tool": lambda: time.sleep(0.2)}, packages=(), checkpoint="always") as repl:
        with pytest.raises(CellError, match="more calls at once"):
            repl.execute(code)
        assert repl.execute("1") == 1


def test_a_fuzzed_worker_never_takes_the_host_with_it() -> None:
    """Valid frames with bytes changed, cut, doubled and mixed, sent from a real worker."""
    chance = random.Random(7)
    valid = [
        packet(b'{"t":"done","id":2,"kind":"done","output":"","error":"","values":{},"copying":0.1,"taken":true}'),
        packet(b'{"t":"call","id":1,"name":"tool","args":[],"kwargs":{}}', number=1),
        packet(b'{"t":"awake","pid":1}'),
        packet(b'{"t":"call","id":1,"name":"other_tool"', last=0),
    ]
    ran: list[str] = []
    started = time.monotonic()
    with PythonInterpreter(
        {"tool": lambda: ran.append("tool")},
        packages=(),
        checkpoint="always",
        cell_limits=CellLimits(seconds=3, grace_seconds=0.2),
    ) as repl:
        for turn in range(60):
            sent = [fuzzed(chance, chance.choice(valid)) for _ in range(chance.randint(1, 4))]
            try:
                repl.execute(FIND + f"for m in {sent!r}:\n    for f in fds: os.write(f, m)\nos._exit(1)")
            except (CellError, SyntaxError):
                continue
            except dspy.CodeInterpreterError as error:
                raise AssertionError(f"lost at turn {turn}") from error
    assert set(ran) <= {"tool"}
    assert time.monotonic() - started < 60


def fuzzed(chance: random.Random, message: bytes) -> bytes:
    data = bytearray(message)
    for _ in range(chance.randint(0, 6)):
        place = chance.randrange(len(data))
        how = chance.randrange(4)
        if how == 0:
            data[place] = chance.randrange(256)
        elif how == 1:
            del data[place : place + chance.randint(1, 9)]
        elif how == 2:
            data[place:place] = data[: chance.randint(1, 9)]
        else:
            data[place:place] = bytes(chance.randrange(256) for _ in range(5))
        data = data or bytearray(b"\0")
    return bytes(data)


def test_descriptors_that_a_worker_sends_are_not_taken() -> None:
    """They would fill the host's table."""
    code = FIND + (
        "import socket, array\n"
        "for f in fds:\n"
        "    s = socket.socket(fileno=os.dup(f))\n"
        "    for _ in range(50): s.sendmsg([b'\\0\\0\\0\\0\\0x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [0] * 50))])\n"
    )
    with PythonInterpreter(packages=(), checkpoint="always") as repl:
        repl.execute("1")
        before = descriptors()
        with pytest.raises(CellError, match="too small"):
            repl.execute(code)
        # Each message carries fifty. A copy that takes over, and a look at memory, open a few of the host's own.
        assert comes_true(lambda: sum((descriptors() - before).values()) < 50), descriptors() - before


@pytest.mark.parametrize("rung", RUNGS)
class TestOtherRuns:
    """What one run can do to another in the same process, on each rung."""

    def open(self, rung: str, tools: dict[str, Any] | None = None) -> PythonInterpreter:
        policy = ConfinementPolicy(**dict.fromkeys(GUARANTEES, False), layers=RUNGS[rung])
        made = PythonInterpreter(tools, confinement=policy, packages=())
        try:
            made.start()
        except CannotConfine as error:
            pytest.skip(str(error))
        return made

    def test_it_cannot_signal_it(self, rung: str) -> None:
        """Nor the fork server, nor its own parent."""
        with self.open(rung) as victim, self.open(rung) as repl:
            victim.execute("x = 1")
            session: Any = victim._session
            inside = range(1, 3_000) if "namespaces" in RUNGS[rung] else [session._process.handle.host_pid()]
            repl.execute(
                f"import os\nfor pid in [*{inside!r}, os.getppid()]:\n"
                "    if pid not in (os.getpid(), 0):\n"
                "        try: os.kill(pid, 9)\n"
                "        except OSError: pass\n"
            )
            assert victim.execute("x") == 1
            with self.open(rung) as third:
                assert third.execute("1") == 1

    def test_it_cannot_read_its_files(self, rung: str) -> None:
        """Nor write them, nor see their names."""
        with self.open(rung) as victim, self.open(rung) as repl:
            victim.execute("open('private', 'w').write('canary')")
            found = repl.execute(
                "import os\nfound = []\n"
                "for folder, _, files in os.walk(os.path.dirname(os.getcwd())): found += files\nfound"
            )
            assert found == []
            place = victim.execute("import os; print(os.getcwd())")
            with pytest.raises(CellError, match=r"PermissionError|FileNotFoundError"):
                repl.execute(f"open({place!r} + '/private').read()")

    def test_it_cannot_change_a_text_that_both_have(self, rung: str) -> None:
        """The mapping is sealed: writing to it ends the writer."""
        text = "shared " * 10_000
        with self.open(rung) as victim:
            victim.execute("t[:6]", {"t": text})
            for code in (
                "import ctypes; ctypes.memset(id(t) + 2000, 88, 9000)",
                (
                    "import ctypes; ctypes.CDLL(None).mprotect(ctypes.c_void_p((id(t) + 8191) // 4096 * 4096), 4096, 3)\n"
                    "ctypes.memset((id(t) + 8191) // 4096 * 4096, 88, 4)"
                ),
            ):
                with self.open(rung) as repl, pytest.raises(dspy.CodeInterpreterError, match="process ended"):
                    repl.execute(code, {"t": text})
            assert victim.execute("t == 'shared ' * 10_000") is True
        assert text == "shared " * 10_000

    def test_it_cannot_call_its_tools(self, rung: str) -> None:
        """Not by a frame of its own either."""
        called = []
        call = json.dumps({"t": "call", "id": 1, "name": "private", "args": [], "kwargs": {}}).encode()
        with self.open(rung, {"private": lambda: called.append(1)}) as victim, self.open(rung) as repl:
            victim.execute("1")
            repl.execute(FIND + f"for f in fds: os.write(f, {packet(call, number=1)!r})")
            with pytest.raises(CellError, match="NameError"):
                repl.execute("private()")
        assert called == []


@pytest.mark.skipif(os.getuid() != 0, reason="they ran as an ordinary user already")
def test_other_runs_are_as_safe_where_no_root_is() -> None:
    """The same tests as an ordinary user, whose workers all have its one id."""
    done = subprocess.run(
        [sys.executable, str(HERE / "attacked.py"), "pytest", "ordinary", f"{__file__}::TestOtherRuns"],
        env={**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}", "HOME": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert f"{4 * len(RUNGS)} passed" in done.stdout, done.stdout[-3_000:] + done.stderr[-1_000:]


def test_a_session_that_is_closed_while_a_tool_runs_is_closed() -> None:
    """The tool's answer then goes nowhere."""
    hold, finished = threading.Event(), threading.Event()

    def tool() -> None:
        hold.wait(60)
        finished.set()

    repl = PythonInterpreter({"tool": tool}, packages=(), cell_limits=CellLimits(seconds=1, grace_seconds=0.1))
    repl.start()
    with pytest.raises(CellError):
        repl.execute("tool()")
    repl.shutdown()
    hold.set()
    assert finished.wait(60)
