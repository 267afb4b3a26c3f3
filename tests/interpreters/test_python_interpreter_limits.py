"""What a worker may use of the machine holds for all its processes together, on each rung of the kernel ladder."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rlm_dspy.interpreters import CannotConfine, CellError, CellUndone, PythonInterpreter, WorkerLimits
from rlm_dspy.interpreters.confinement_policy import RUNGS, ConfinementPolicy, held
from tests.interpreters.waiting import comes_true

if TYPE_CHECKING:
    from collections.abc import Iterator

SMALL = WorkerLimits(memory_bytes=64 << 20, max_processes=40, scratch_bytes=16 << 20, scratch_files=500)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the confinement is of Linux")

ORPHANS = """
import os, signal, time
signal.signal(signal.SIGUSR1, lambda *_: let_loose.append(True))
def orphan():
    if os.fork() == 0:
        if os.fork() == 0:
            try:
                while not let_loose: time.sleep(0.01)
                taken = bytearray(30 << 20)
                taken[::4096] = bytes(len(taken[::4096]))
                time.sleep(120)
            except BaseException as error:
                open("refused", "a").write(repr(error))
        os._exit(0)
    os.wait()
for _ in range(10): orphan()
"""
FORKS = """
import os, signal
made = 0
try:
    for _ in range(200):
        if os.fork() == 0: signal.pause()
        made += 1
except OSError: pass
made
"""
THREADS = """
import threading
stop, made = threading.Event(), 0
try:
    for _ in range(200):
        threading.Thread(target=stop.wait, daemon=True).start()
        made += 1
except RuntimeError: pass
stop.set(); made
"""
FILES = """
made = 0
try:
    for made in range(20_000): open(f"f{made}", "w").close()
except OSError as error: print(error.strerror)
made
"""


@pytest.fixture(params=RUNGS)
def repl(request: pytest.FixtureRequest) -> Iterator[PythonInterpreter]:
    """Run on one rung; in turn on each that this system can hold for this user."""
    made = PythonInterpreter(
        confinement=ConfinementPolicy(layers=RUNGS[request.param]),
        worker_limits=SMALL,
        packages=(),
        checkpoint="always",
    )
    try:
        made.start()
    except CannotConfine as error:
        pytest.skip(str(error))
    with made:
        made.execute("state = 1")
        yield made


def processes_of(repl: PythonInterpreter) -> list[int]:
    """Return the numbers of all processes of a session."""
    session: Any = repl._session
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.getpgid(int(path.name)) == session._process.handle._group:
                found.append(int(path.name))
    return found


def taken(repl: PythonInterpreter) -> int:
    """Return what all processes of a session have in memory of their own, in MB, as the kernel tells it."""
    kilobytes = 0
    for pid in processes_of(repl):
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon", "Pss_Shmem")))
    return kilobytes >> 10


def settles(repl: PythonInterpreter) -> bool:
    """Whether a session takes no more than it may once what was killed has ended."""
    return comes_true(lambda: taken(repl) <= 64)


def test_children_whose_parents_have_ended_count_while_a_cell_runs(repl: PythonInterpreter) -> None:
    """They end with the cell that made them."""
    with pytest.raises(CellUndone, match="MB together"):
        repl.execute(f"let_loose = [True]\n{ORPHANS}\ntime.sleep(100)")
    assert settles(repl)
    assert repl.execute("state") == 1


def test_children_that_outlive_their_cell_count_too(repl: PythonInterpreter) -> None:
    """Those that a cell leaves behind are ended when they take too much; the session goes on.

    They wait for a signal, so none has taken anything before it, and no cell runs when they do.
    """
    repl.execute(f"let_loose = []\n{ORPHANS}")
    with ExitStack() as stack:
        handles = []
        for pid in processes_of(repl):
            with suppress(ProcessLookupError):  # a copy of the session that is needed no more
                handle = os.pidfd_open(pid)
                stack.callback(os.close, handle)
                signal.pidfd_send_signal(handle, signal.SIGUSR1)
                handles.append(handle)
        assert len(handles) > 10
        assert comes_true(lambda: len(select.select(handles, [], [], 0)[0]) >= 8)  # two of 30 MB may stay
    assert settles(repl)
    assert repl.execute("state, os.path.exists('refused')") == [1, False]


def test_children_that_take_little_are_left_alone(repl: PythonInterpreter) -> None:
    """Between cells and in them."""
    repl.execute("import os, time\nif os.fork() == 0: time.sleep(30); os._exit(0)")
    time.sleep(1.5)
    assert repl.execute("os.waitpid(-1, os.WNOHANG)[0]") == 0


def test_memory_that_the_kernel_does_not_count_cannot_be_had(repl: PythonInterpreter) -> None:
    """Shared maps of no file, of `/dev/zero`, and maps that grow downwards; shared maps of files are scratch."""
    for code in (
        "mmap.mmap(-1, 1 << 20)",
        "mmap.mmap(os.open('/dev/zero', os.O_RDWR), 1 << 20)",
        "mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x100)",
    ):
        with pytest.raises(CellError, match="Error"):
            repl.execute(f"import mmap, os\n{code}")
    assert repl.execute("import mmap\nlen(mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE))") == 1 << 20
    code = "f = open('x', 'w+b'); f.truncate(4096); m = mmap.mmap(f.fileno(), 4096); m[0] = 7; f.read(1)[0]"
    assert repl.execute(code) == 7


@pytest.mark.parametrize("code", [FORKS, THREADS])
def test_processes_and_threads_are_limited(repl: PythonInterpreter, code: str) -> None:
    """Also for root, on every rung. Without a user namespace the kernel counts what else the user runs at the start."""
    others = 0 if "namespaces" in repl.layers else 20
    assert int(str(repl.execute(code))) <= SMALL.max_processes + others


def test_files_are_limited_in_number_where_the_scratch_is_capped(repl: PythonInterpreter) -> None:
    """And the policy names that only where it holds."""
    if "scratch_cap" not in held(frozenset(repl.layers)):
        assert ConfinementPolicy(scratch_cap=True).required()[-1] == "scratch_cap"
        return
    repl.execute(FILES)
    left, made = repl.shown.splitlines()
    assert left == "No space left on device"
    assert int(made) < SMALL.scratch_files
    assert repl.execute("import os\nfor name in os.listdir(): os.unlink(name)\nstate") == 1


@pytest.mark.parametrize(
    "code",
    [
        "import multiprocessing\nmultiprocessing.Pool(2)",
        "from concurrent.futures import ProcessPoolExecutor\nProcessPoolExecutor(2)",
    ],
)
def test_code_reads_what_to_use_in_place_of_processes(code: str) -> None:
    """The error of `multiprocessing` is "No such file or directory", of no file."""
    with PythonInterpreter(packages=()) as repl, pytest.raises(CellError, match="Use concurrent"):
        repl.execute(code)
