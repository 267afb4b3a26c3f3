"""Many sessions, many at a time, each doing something bad: nothing is left over at the end."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import dspy
import pytest

from rlm_dspy.interpreters.base import CellError
from rlm_dspy.interpreters.confinement.limits import WorkerLimits
from rlm_dspy.interpreters.confinement_policy import ConfinementPolicy
from rlm_dspy.interpreters.host import fork_server_client, input_transfer, servers
from rlm_dspy.interpreters.host.deadlines import CellLimits
from rlm_dspy.interpreters.python import PythonInterpreter
from tests.interpreters.test_python_interpreter_durability import BOMBS, CRASHES, HANGS
from tests.interpreters.waiting import comes_true, descriptors

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the confinement is of Linux")

CASES = [*HANGS.values(), *CRASHES.values(), *BOMBS.values(), "print(len(given))", "SUBMIT(1)", "1 / 0"]
LIMITS = WorkerLimits(memory_bytes=128 << 20, max_processes=32, scratch_bytes=8 << 20, max_open_files=128)


def children() -> set[str]:
    """The processes that came from this one, by number and name; those that are ending are among them."""
    found, todo = set(), [os.getpid()]
    while todo:
        pid = todo.pop()
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                inner = list(map(int, path.read_text().split()))
            except OSError:
                continue
            todo += inner
            for each in inner:
                with suppress(OSError):  # it has ended meanwhile; the others count
                    found.add(f"{each} {Path(f'/proc/{each}/comm').read_text().strip()}")
    return found


def resident() -> int:
    """Megabytes of private memory of this process, without what its allocator keeps for later."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    fields = Path("/proc/self/statm").read_text().split()
    return (int(fields[1]) - int(fields[2])) * 4096 >> 20


def one(seed: int, text: str) -> str:
    """A session of a few random cells; how it ended."""
    chance, never = random.Random(seed), threading.Event()
    tools: dict[str, Any] = {"forever": lambda: never.wait(2) and None, "echo": lambda value: value}
    repl = PythonInterpreter(
        tools,
        worker_limits=LIMITS,
        packages=(),
        cell_limits=CellLimits(seconds=0.3, grace_seconds=0.3),
        checkpoint=chance.choice(("always", "auto", "off")),
    )
    try:
        for _ in range(chance.randint(1, 4)):
            try:
                repl.execute(chance.choice(CASES), {"given": text})
            except (CellError, SyntaxError):
                continue
    except dspy.CodeInterpreterError:
        return "lost"
    else:
        return "kept"
    finally:
        never.set()
        repl.shutdown()


def soak(sessions: int, at_once: int) -> None:
    text = "x" * 1_000_000
    one(0, text)
    server: Any = servers.server_for(fork_server_client.Recipe((), (), ConfinementPolicy()))
    open_before, shared = descriptors(), set(input_transfer._all)
    before = children(), resident()
    with ThreadPoolExecutor(at_once) as pool:
        ended = list(pool.map(lambda seed: one(seed, text), range(1, sessions + 1)))
    assert set(ended) <= {"kept", "lost"}
    assert comes_true(lambda: not children() - before[0]), children() - before[0]
    # A tool may return after its session has ended, and the watch holds a pidfd for a moment.
    assert comes_true(lambda: not descriptors() - open_before), descriptors() - open_before
    assert comes_true(lambda: not set(input_transfer._all) - shared)
    assert not Path(server._folder).exists()
    assert resident() - before[1] < 60 + sessions // 20


def test_thirty_sessions_leave_nothing() -> None:
    """Sixteen at a time."""
    soak(30, 16)


@pytest.mark.by_hand
@pytest.mark.timeout(3_000)
def test_two_thousand_sessions_leave_nothing() -> None:
    """Sixteen at a time; takes minutes."""
    soak(2_000, 16)
