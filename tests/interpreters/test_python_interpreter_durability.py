"""What code can do to its worker, and what is left of the session: the state, or the truth about its loss."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy.interpreters.base import CellError, CellUndone
from rlm_dspy.interpreters.confinement.limits import WorkerLimits
from rlm_dspy.interpreters.host.deadlines import CellLimits
from rlm_dspy.interpreters.python import PythonInterpreter
from tests.interpreters.waiting import comes_true, unhurried

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the confinement is of Linux")

SMALL = WorkerLimits(memory_bytes=256 << 20, max_processes=32, scratch_bytes=16 << 20, max_open_files=128)
FIND = (
    "import os, stat\n"
    "def _is(f):\n"
    "    try: return stat.S_ISSOCK(os.fstat(f).st_mode)\n"
    "    except OSError: return False\n"
    "fds = [f for f in range(3, 64) if _is(f)]\n"
)

HANGS = {
    "loop": "while True: pass",
    "sleep": "import time; time.sleep(1000)",
    "select": "import select; select.select([], [], [])",
    "read a pipe": "import os; r, w = os.pipe(); os.read(r, 1)",
    "a lock": "import threading; l = threading.Lock(); l.acquire(); l.acquire()",
    "join a thread": "import threading; t = threading.Thread(target=threading.Event().wait, daemon=True); t.start(); t.join()",
    "regex": "import re; re.match(r'(a+)+$', 'a' * 40 + 'b')",
    "big power": "x = 9 ** 9 ** 9",
    "big str": "import sys; sys.set_int_max_str_digits(0); str(7 ** 3_000_000)",
    "sum": "sum(range(10 ** 12))",
    "in range": "10 ** 12 in iter(range(10 ** 13))",
    "sort": "sorted([0] * 5, key=lambda _: sum(range(10 ** 12)))",
    "swallow Exception": "while True:\n    try:\n        while True: pass\n    except Exception: pass",
    "swallow all": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "ignore signals": "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass",
    "block signals": "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))\nwhile True: pass",
    "generator": "def g():\n    while True: yield 1\nlist(x for x in g() if not x)",
    "await": "import asyncio\nawait asyncio.sleep(1000)",
    "a tool that does not return": "forever()",
    "tools in threads that do not return": (
        "from concurrent.futures import ThreadPoolExecutor\nlist(ThreadPoolExecutor(4).map(lambda _: forever(), range(4)))"
    ),
    "wait for a child": "import os, signal\nif os.fork() == 0:\n    while True: signal.pause()\nos.wait()",
}
CRASHES = {
    "segfault": "import ctypes; ctypes.string_at(0)",
    "abort": "import os; os.abort()",
    "_exit": "import os; os._exit(0)",
    "kill": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "kill the group": "import os, signal; os.kill(0, signal.SIGTERM)",
    "stack": "x = ()\nfor _ in range(1_500_000): x = (x,)\nhash(x)",
    "free": "import ctypes; ctypes.pythonapi.Py_DecRef(ctypes.py_object(None)); ctypes.memset(id(None), 0, 16); del [1, None][:]; [None] * 9",
    "close descriptors": "import os; os.closerange(0, 256)",
    "replace descriptors": FIND + "n = os.open('/dev/null', os.O_RDWR)\nfor f in fds: os.dup2(n, f)",
    "shut the socket": FIND + "import socket\nfor f in fds: socket.socket(fileno=os.dup(f)).shutdown(2)",
    "garbage": FIND + "for f in fds: os.write(f, b'garbage')",
    "a frame that is no JSON": FIND + "for f in fds: os.write(f, b'\\x01\\0\\0\\0\\0{]')",
    "a result that is none": FIND + 'for f in fds: os.write(f, b\'\\x01\\0\\0\\0\\0{"t":"done"}\')',
    "an endless frame": FIND + "while True:\n    for f in fds: os.write(f, b'\\0\\0\\0\\0\\0' + b'[' * 100_000)",
    "signals": "import os, signal, time\nsignal.raise_signal(signal.SIGXCPU)",
    "a fault in a thread": "import ctypes, threading\nt = threading.Thread(target=ctypes.string_at, args=(0,)); t.start(); t.join()",
}
BOMBS = {
    "memory": "x = bytearray(10 ** 9)",
    "memory by and by": "x = []\nwhile True: x.append(bytearray(1 << 20))",
    "memory in pages": "x = []\nwhile True: x.append(bytearray(1 << 12))",
    "memory in crumbs": "x = []\nwhile True: x.append(bytearray(1000))",
    "shared memory": "import mmap\nx = [mmap.mmap(-1, 1 << 28) for _ in range(64)]",
    "strings": "x = 'a' * 10 ** 10",
    "recursion": "def f(): return f()\nf()",
    "forks": "import os\nwhile os.fork() >= 0: pass",
    "threads": "import threading\ne = threading.Event()\nfor _ in range(10_000): threading.Thread(target=e.wait, daemon=True).start()",
    "descriptors": "import os\nx = [os.open('/dev/null', 0) for _ in range(10_000)]",
    "files": "for i in range(100):\n    with open(f'f{i}', 'wb') as f: f.write(bytes(1 << 20))",
    "deep result": "x = []\nfor _ in range(10 ** 5): x = [x]\nSUBMIT(x)",
    "deep arguments": "x = []\nfor _ in range(10 ** 5): x = [x]\necho(x)",
    "an endless iterator": "echo(__import__('itertools').count())",
    "deep source": "eval('(' * 10_000 + ')' * 10_000)",
}
QUIET = {"signals", "kill the group"}


@pytest.fixture
def repl() -> Iterator[PythonInterpreter]:
    never = threading.Event()

    def forever() -> None:
        never.wait(30)

    with PythonInterpreter(
        {"forever": forever, "echo": lambda value: value},
        worker_limits=SMALL,
        packages=(),
        cell_limits=CellLimits(seconds=0.4, grace_seconds=0.4),
        checkpoint="always",
    ) as made:
        with unhurried(made):
            made.execute("state = ['kept']\ndef double(x): return 2 * x", {"given": "g" * 50_000})
        yield made
        never.set()


def survives(repl: PythonInterpreter) -> None:
    """The session goes on with the state it had."""
    with unhurried(repl):
        assert repl.execute("state, double(4), len(given)") == [["kept"], 8, 50000]


@pytest.mark.parametrize("case", HANGS)
def test_a_cell_that_hangs_is_stopped_and_the_state_kept(repl: PythonInterpreter, case: str) -> None:
    """By an interrupt, or if it ignores that by its end and the checkpoint before it."""
    started = time.monotonic()
    with pytest.raises(CellError, match=r"longer than 0\.4 s") as caught:
        repl.execute(f"state.append('undone?'); state.pop()\nprint('so far')\n{HANGS[case]}")
    assert time.monotonic() - started < 10
    assert caught.value.output.startswith("so far")
    survives(repl)


@pytest.mark.parametrize("case", CRASHES)
def test_a_cell_that_ends_its_worker_is_undone(repl: PythonInterpreter, case: str) -> None:
    """And the model is told what that means."""
    if case in QUIET:
        with unhurried(repl), pytest.raises(dspy.CodeInterpreterError):
            repl.execute(f"state.append('gone')\n{CRASHES[case]}")
        return
    with unhurried(repl), pytest.raises(CellUndone, match="restored to their state before this cell") as caught:
        repl.execute(f"state.append('gone')\nprint('so', end=' '); print('far')\n{CRASHES[case]}")
    assert "are not undone" in str(caught.value)
    assert caught.value.output.startswith("so far")
    survives(repl)


@pytest.mark.parametrize("case", BOMBS)
def test_a_bomb_is_an_error_of_its_cell(repl: PythonInterpreter, case: str) -> None:
    """Whatever it filled, the next cell has room."""
    with pytest.raises((CellError, SyntaxError)):
        repl.execute(BOMBS[case])
    with unhurried(repl):
        if isinstance(repl.execute("1"), str):
            repl.execute("x = None")
    survives(repl)


def test_the_memory_of_all_its_processes_is_counted() -> None:
    """The kernel limits each; together they are ended too, and the state kept."""
    with PythonInterpreter(worker_limits=SMALL, packages=(), checkpoint="always") as repl:
        repl.execute("state = 1")
        with pytest.raises(CellUndone, match="MB together"):
            repl.execute(
                "import os, time\nfor _ in range(6):\n    if os.fork() == 0: break\nx = b'x' * (100 << 20)\ntime.sleep(60)"
            )
        assert repl.execute("state") == 1


def test_a_flood_of_output_costs_its_cap_only(repl: PythonInterpreter) -> None:
    """Printed or shown."""
    with pytest.raises(CellError, match="left out"):
        repl.execute("while True: print('x' * 10_000)")
    survives(repl)


def test_without_a_checkpoint_the_loss_is_told() -> None:
    """As the error that ends a session; a new cell does not start another in silence."""
    with PythonInterpreter(packages=(), checkpoint="off") as repl:
        repl.execute("x = 1")
        with pytest.raises(
            dspy.CodeInterpreterError, match="the session and all its variables are lost"
        ) as caught:
            repl.execute("print('found: 43'); import os; os._exit(1)")
        assert str(caught.value).endswith("printed:\nfound: 43")
        assert not isinstance(caught.value, dspy.CodeExecutionError)
        with pytest.raises(dspy.CodeInterpreterError, match="lost"):
            repl.execute("x")


def test_a_worker_that_dies_between_cells_is_replaced_by_its_checkpoint(repl: PythonInterpreter) -> None:
    """The cell that finds it dead does not run, and says so."""
    with unhurried(repl):
        repl.execute("import os, threading\nthreading.Timer(1, os._exit, (1,)).start()")
    session: Any = repl._session
    assert comes_true(lambda: session._process.ended)
    with unhurried(repl), pytest.raises(CellUndone, match="did not run") as caught:
        repl.execute("state.append('more')")
    assert caught.value.output == ""
    survives(repl)


def test_of_a_long_output_a_crash_loses_a_moment_at_most(repl: PythonInterpreter) -> None:
    """It is told less often than it is written."""
    code = "for n in range(2_000): print(n)\nimport time; time.sleep(0.1); print('then'); print('last')\nimport os; os._exit(1)"
    with unhurried(repl), pytest.raises(CellUndone) as caught:
        repl.execute(code)
    assert caught.value.output.startswith("0\n1\n")
    assert caught.value.output.endswith("1999\nthen")


def test_a_child_that_code_has_forked_tells_the_host_nothing(repl: PythonInterpreter) -> None:
    """Its output is its own, and the worker's channel too."""
    code = "import os\nprint('parent')\nif (child := os.fork()) == 0:\n    print('child'); os._exit(0)\n_ = os.waitpid(child, 0)"
    with unhurried(repl):
        assert repl.execute(code) == "parent"
