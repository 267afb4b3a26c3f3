"""A sleeping copy shares the memory of its session, and what code touches becomes the copy's, too: it is given up."""

from __future__ import annotations

import dataclasses
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy.interpreters import CannotConfine, CellError, CellUndone, PythonInterpreter, WorkerLimits, remote
from rlm_dspy.interpreters.confinement_policy import RUNGS, ConfinementPolicy
from tests.interpreters.waiting import comes_true

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the confinement is of Linux")

SMALL = WorkerLimits(memory_bytes=96 << 20, max_processes=40)
LARGE = "x = [str(i) * 12 for i in range(450_000)]; kept = 1"
"""More than half of what is allowed, in objects that are written to when they are read."""
READ = "read = sum(len(s) for s in x)"
CRASH = "import os; os._exit(1)"
HOGS = """
import os, time
for _ in range(4):
    if os.fork() == 0:
        break
taken = b"x" * (40 << 20)
time.sleep(60)
"""


def asleep(repl: Any) -> list[Any]:
    """Return the copies of a session that sleep."""
    return list(repl._session._checkpoints.asleep())


@contextmanager
def opened(made: PythonInterpreter) -> Iterator[PythonInterpreter]:
    """Give an interpreter whose code can wait until no copy is left."""
    made.tools["no_copy_left"] = lambda: comes_true(lambda: not asleep(made))
    with made:
        yield made


@pytest.fixture(params=RUNGS)
def repl(request: pytest.FixtureRequest) -> Iterator[PythonInterpreter]:
    """Run on each rung that this system can hold for this user."""
    policy = ConfinementPolicy(layers=RUNGS[request.param])
    made = PythonInterpreter(confinement=policy, worker_limits=SMALL, packages=(), checkpoint="always")
    try:
        made.start()
    except CannotConfine as error:
        pytest.skip(str(error))
    with opened(made):
        yield made


def test_code_that_only_reads_is_never_killed_for_memory(repl: PythonInterpreter) -> None:
    """However often it does so; its copy goes."""
    repl.execute(LARGE)
    for _ in range(2):
        assert repl.execute(f"{READ}; no_copy_left()") is True
    assert repl.execute("kept") == 1


def test_code_can_free_what_filled_the_memory(repl: PythonInterpreter) -> None:
    """A MemoryError keeps variables, and what they hold is freed by the next cell."""
    with pytest.raises(CellError, match="MemoryError"):
        repl.execute("kept, x = 1, []\nwhile True: x.append('a' * 1000 + str(len(x)))")
    assert repl.execute("del x; no_copy_left()") is True
    assert repl.execute("kept, len([str(i) * 12 for i in range(450_000)])") == [1, 450_000]


def test_what_is_lost_with_a_copy_that_was_given_up_is_told(repl: PythonInterpreter) -> None:
    """There is nothing to go back to if the process then dies."""
    repl.execute(LARGE)
    with pytest.raises(dspy.CodeInterpreterError, match=r"all its variables are lost.*copy had been given up"):
        repl.execute(f"{READ}; no_copy_left(); {CRASH}")


def test_a_session_is_copied_again_when_there_is_room(repl: PythonInterpreter) -> None:
    """After its copy was given up."""
    repl.execute(LARGE)
    repl.execute(f"{READ}; no_copy_left(); x = None")
    with pytest.raises(CellUndone, match="before this cell"):
        repl.execute(f"kept = 2\n{CRASH}")
    assert repl.execute("kept") == 1


def test_a_copy_is_kept_where_its_end_would_be_too_little(repl: PythonInterpreter) -> None:
    """The session goes on from it when the processes that take the memory are killed."""
    repl.execute("kept = 1")
    with pytest.raises(CellUndone, match="MB together"):
        repl.execute(HOGS)
    assert repl.execute("kept") == 1


def test_the_processes_of_a_branch_are_counted_too(repl: PythonInterpreter) -> None:
    """Though the branch came from the process of the session that it branched off."""
    repl.execute("kept = 1")
    (branch,) = repl.fork()
    with opened(branch):
        with pytest.raises(CellUndone, match="MB together"):
            branch.execute(HOGS)
        assert branch.execute("kept") == 1
    assert repl.execute("kept") == 1


def test_a_copy_is_given_up_elsewhere_too() -> None:
    """The far end of a connection looks at the processes there."""
    box = dataclasses.replace(remote.argv(packages=()), worker_limits=SMALL)
    with opened(box()) as repl:
        repl.execute(LARGE)
        assert repl.execute(f"{READ}; no_copy_left()") is True
    box.close()


def test_memory_that_is_full_is_called_so_where_python_says_otherwise() -> None:
    """Some of its functions fail without an error of their own then."""
    with PythonInterpreter(worker_limits=SMALL, packages=()) as repl:
        fill = "x = []\ntry:\n    while True: x.append(bytearray(1000))\nexcept MemoryError: pass\n"
        with pytest.raises(CellError, match=r"MemoryError \(SystemError: no exception set\)$"):
            repl.execute(f"{fill}raise SystemError('no exception set')")
        repl.execute("del x")
        with pytest.raises(CellError, match=r"\nSystemError: a fault"):
            repl.execute("raise SystemError('a fault')")


DEEP: dict[str, str] = {
    "calls": "def f(n): return f(n + 1)\nf(0)",
    "calls through C": "def f(n): return sorted([n], key=f)\nf(0)",
    "methods": "class A:\n    def __repr__(self): return f'{self!r}'\nrepr(A())",
    "data": "import pickle\nx = []\nfor _ in range(100_000): x = [x]\npickle.dumps(x)",
    "source": "eval('+'.join(['1'] * 100_000))",
}


@pytest.fixture(scope="module")
def deep() -> Iterator[PythonInterpreter]:
    with PythonInterpreter(packages=(), checkpoint="off") as made:
        yield made


@pytest.mark.parametrize("code", DEEP.values(), ids=DEEP)
def test_recursion_without_end_is_its_error_however_high_the_limit_was_set(
    deep: PythonInterpreter, code: str
) -> None:
    """The stack has room for the most that is possible, and the memory is never filled."""
    with pytest.raises(CellError, match="RecursionError") as caught:
        deep.execute(f"import sys\nsys.setrecursionlimit(10**9)\n{code}")
    assert "is set to 20,000, the most that is possible here" in str(caught.value.output)
    assert deep.execute("sys.setrecursionlimit(5_000); sys.getrecursionlimit()") == 5_000
