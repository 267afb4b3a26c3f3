"""What a crash takes with it: the cell that crashed, and nothing that was paid for before."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM
from rlm_dspy.interpreters.base import CellUndone
from rlm_dspy.interpreters.host.checkpoints import Checkpoints
from rlm_dspy.interpreters.host.worker_connection import WorkerConnection
from rlm_dspy.interpreters.python import PythonInterpreter
from rlm_dspy.interpreters.worker.cell import SETUP
from rlm_dspy.testing import ScriptedLM
from tests.interpreters.waiting import descriptors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm_dspy.interpreters.worker import wire

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the confinement is of Linux")

CRASH = "import os; os._exit(1)"
SLOW_COPIES = "import os, time\nos.register_at_fork(before=lambda: time.sleep({seconds}))"
"""Makes each copy take as long as on a busy machine, or with much private data."""


def opened(seconds: float = 0.0, **options: Any) -> PythonInterpreter:
    """Return an interpreter whose copies take so long, or longer on a busy machine, where `auto` makes fewer."""
    repl = PythonInterpreter({"ask": lambda n: n * n}, packages=(), **options)
    repl.execute(SLOW_COPIES.format(seconds=seconds) if seconds else "import os, time")
    return repl


def test_after_ten_turns_with_sub_calls_a_crash_undoes_its_own_cell_only() -> None:
    """Though each copy takes longer than `auto` likes: what calls gave may have been paid for."""
    with opened(0.05) as repl:
        repl.execute("xs = [ask(0)]")
        for turn in range(1, 10):
            repl.execute(f"xs.append(ask({turn}))")
        with pytest.raises(CellUndone, match="restored to their state before this cell"):
            repl.execute(f"xs.clear()\n{CRASH}")
        assert repl.execute("print(xs)") == str([turn * turn for turn in range(10)])


def test_a_run_with_sub_calls_goes_on_where_it_was_before_a_crash() -> None:
    """The model is told that the cell alone is undone, and that what it called was called."""
    asked: list[str] = []

    def answer(messages: list[dict[str, Any]]) -> str:
        asked.append(messages[-1]["content"])
        return f"answer {len(asked)}"

    turns = [SLOW_COPIES.format(seconds=0.05) + "\nxs = []"]
    turns += [f"xs.append(llm_query('call {turn}'))" for turn in range(10)]
    turns += [f"xs.clear()\n{CRASH}", "SUBMIT(answer=', '.join(xs))"]
    lm = ScriptedLM([f"```python\n{turn}\n```" for turn in turns])
    rlm = RLM(
        "question -> answer", sub_lm=ScriptedLM(answer), interpreter_factory=lambda: PythonInterpreter(packages=())
    )
    with dspy.context(lm=lm):
        prediction = rlm(question="?")
    assert prediction.answer == ", ".join(f"answer {turn}" for turn in range(1, 11))
    assert len(asked) == 10
    told = prediction.trajectory[-2]["output"]
    assert "restored to their state before this cell" in told
    assert "Function calls and written files are not undone" in told


def test_a_run_is_copied_once_before_each_turn() -> None:
    """Its set-up is one step, before which there is nothing to go back to."""
    made: list[PythonInterpreter] = []

    def factory() -> PythonInterpreter:
        made.append(PythonInterpreter(packages=(), checkpoint="always"))  # `auto` makes fewer on a busy machine
        return made[-1]

    turns = [f"context = 'x'\n{CRASH}", "context += '!'", "SUBMIT(answer=context)"]
    lm = ScriptedLM([f"```python\n{turn}\n```" for turn in turns])
    with dspy.context(lm=lm):
        prediction = RLM("context -> answer", interpreter_factory=factory)(context="found")
    assert "restored to their state before this cell" in prediction.trajectory[0]["output"]
    assert prediction.answer == "found!"
    session: Any = made[0]._session
    assert session._orders == len(turns)


def test_a_copy_is_made_while_the_model_thinks() -> None:
    """The cell's result does not wait for it."""
    with opened(checkpoint="always") as repl:
        repl.execute("slow = []\nos.register_at_fork(before=lambda: time.sleep(slow.pop() if slow else 0))")
        started = time.monotonic()
        repl.execute("x = 1; slow.append(4)")
        assert time.monotonic() - started < 3
        with pytest.raises(CellUndone, match="before this cell"):
            repl.execute(f"x = 2\n{CRASH}")
        assert time.monotonic() - started > 4
        assert repl.execute("print(x)") == "1"


def test_time_spent_thinking_is_worth_a_copy() -> None:
    """Dear copies are made less often, measured by what has passed since the last."""
    with opened(0.05) as repl:
        repl.execute("x = 0")
        for value in range(1, 4):
            repl.execute(f"x = {value}")
        session: Any = repl._session
        time.sleep(session._checkpoints._seconds / 0.05 + 0.1)
        with pytest.raises(CellUndone, match="before this cell"):
            repl.execute(f"x = 5\n{CRASH}")
        assert repl.execute("print(x)") == "3"


def test_a_second_crash_soon_after_the_first_undoes_its_own_cell_only() -> None:
    """The copy that took over is copied first, though each copy takes longer than `auto` likes."""
    with opened(0.05) as repl:
        repl.execute("x = 1")
        with pytest.raises(CellUndone):
            repl.execute(CRASH)
        for _ in range(2):
            with pytest.raises(CellUndone, match="before this cell"):
                repl.execute(CRASH)
        assert repl.execute("os.getpid() > 0") is True


def test_what_is_undone_is_counted_in_cells_of_the_model() -> None:
    """Those that set the REPL up are none of its turns."""
    with opened(0.5) as repl:
        repl.execute("x = 0")
        for value in range(1, 3):
            repl.execute(f"x = {value}")
            repl.execute(f"{SETUP}pass")
        with pytest.raises(CellUndone, match=r"before the last (3|4) cells, this one included") as told:
            repl.execute(CRASH)
        assert repl.execute("print('x' in globals() and x)") == ("0" if "3 cells" in str(told.value) else "False")


def test_what_a_thread_did_after_its_cell_is_kept() -> None:
    """Then the copy is made before the next cell, and the model learns that the thread has ended."""
    with opened(checkpoint="always") as repl:
        repl.execute("import threading\nx = [1]\nthreading.Timer(0.3, x.append, (2,)).start()")
        time.sleep(2)
        with pytest.raises(CellUndone, match="running threads and processes have ended"):
            repl.execute(f"x.append(3)\n{CRASH}")
        assert repl.execute("print(x)") == "[1, 2]"


def test_what_was_put_is_kept() -> None:
    """A crash in the next cell does not undo it."""
    with opened(checkpoint="always") as repl:
        repl.execute("x = 1")
        repl.put(n=5)
        with pytest.raises(CellUndone, match="before this cell"):
            repl.execute(f"n = 6\n{CRASH}")
        assert repl.execute("print(x, n)") == "1 5"


def test_a_rollback_goes_behind_the_last_cell_however_many_copies_there_are() -> None:
    """Of the state after it there is a copy too."""
    with opened(checkpoint="always") as repl:
        repl.execute("x = 1")
        repl.execute("x = 2")
        time.sleep(0.3)
        assert repl.rollback() == 3
        assert repl.execute("print(x)") == "1"
        repl.execute("x = 7")
        assert repl.rollback() == 5
        with pytest.raises(dspy.CodeInterpreterError, match="no checkpoint"):
            repl.rollback()
        with pytest.raises(CellUndone):
            repl.execute(CRASH)
        assert repl.execute("print(x)") == "1"


def test_a_crash_while_a_copy_is_made_falls_back_to_the_one_before() -> None:
    """It is not waited for: it never was."""
    with opened(checkpoint="always") as repl:
        repl.execute("x = 1")
        repl.execute("x = 2\nos.register_at_fork(before=lambda: os._exit(1))")
        started = time.monotonic()
        with pytest.raises(CellUndone) as told:
            repl.execute("x = 3")
        assert time.monotonic() - started < 4
        assert "did not run" in str(told.value) or "the last 2 cells" in str(told.value)
        assert repl.execute("print(x)") == "1"


class TestWorth:
    """When a copy is worth its cost."""

    @pytest.fixture(autouse=True)
    def closed_afterwards(self) -> Iterator[None]:
        self.opened: list[Checkpoints] = []
        yield
        for kept in self.opened:
            kept.close()

    def kept(self, mode: Any = "auto") -> Checkpoints:
        self.opened.append(Checkpoints(mode))
        return self.opened[-1]

    def order(self, kept: Checkpoints, number: int, **told: Any) -> None:
        process, theirs = WorkerConnection.new()
        theirs.close()
        kept.ordered(process, number, number, number, {})
        if told:
            kept.record_report({"id": number, **told})

    def test_a_state_is_copied_once(self) -> None:
        """In each mode."""
        for mode in ("auto", "always"):
            kept = self.kept(mode)
            assert kept.worth_one()
            self.order(kept, 1, made=True, seconds=0.001)
            assert not kept.worth_one()
            kept.ran(0)
            assert kept.worth_one()
        assert not self.kept("off").worth_one()

    def test_calls_outweigh_any_cost(self) -> None:
        """And dear copies without them wait for time to pass."""
        kept = self.kept()
        self.order(kept, 1, made=True, seconds=100.0)
        kept.ran(0)
        assert not kept.worth_one()
        kept.ran(1)
        assert kept.worth_one()

    @pytest.mark.parametrize(
        "told", [{"made": False, "seconds": 0.1}, {"made": True}, {"made": 1, "seconds": 0.1}]
    )
    def test_what_a_copy_that_was_not_made_would_have_kept_is_at_risk_still(self, told: dict[str, Any]) -> None:
        """The next is as worth as it was."""
        kept = self.kept()
        self.order(kept, 1, made=True, seconds=100.0)
        kept.ran(3)
        self.order(kept, 2, **told)
        assert kept.worth_one()
        assert kept.has(2)
        assert not kept.has(1)

    def test_the_state_of_a_copy_that_was_given_up_is_at_risk_again(self) -> None:
        """With what was called before it, but only if it was the newest."""
        kept = self.kept()
        kept.ran(3)
        self.order(kept, 1, made=True, seconds=100.0)
        kept.ran(0)
        self.order(kept, 2, made=True, seconds=100.0)
        oldest, newest = kept.asleep()
        oldest.given_up = True
        assert not kept.worth_one()
        assert kept.asleep() == [newest]
        newest.given_up = True
        kept.ran(0)
        assert not kept.worth_one()
        assert kept.gave_up
        kept.ran(1)
        assert kept.worth_one()

    def test_what_a_worker_says_of_copies_that_nobody_ordered_is_ignored(self) -> None:
        """A forged word cannot make one."""
        kept = self.kept()
        self.order(kept, 1)
        numbers: list[wire.JSON] = [0, 2, None, "1", [1]]
        for number in numbers:
            kept.record_report({"id": number, "made": True, "seconds": 0.1})
        assert kept.newest() is None


def test_copies_leave_no_descriptor_or_process() -> None:
    """Whatever became of them."""
    with opened() as repl:
        repl.execute("1")
    before, threads = descriptors(), threading.active_count()
    for _ in range(3):
        with opened(checkpoint="always") as repl:
            for _ in range(3):
                repl.execute("x = 1")
            with pytest.raises(CellUndone):
                repl.execute(CRASH)
            repl.execute("x = 2")
            repl.rollback()
    assert not descriptors() - before
    assert threading.active_count() <= threads + 1


def test_a_copy_of_a_worker_with_threads_takes_over_too() -> None:
    """Such a copy is prepared at once: its other threads are gone and may have held what it needs."""
    with opened(checkpoint="always") as repl:
        repl.execute(
            "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\nx = 1"
        )
        repl.execute("x += 1")
        with pytest.raises(CellUndone, match="before this cell"):
            repl.execute(f"x = 0\n{CRASH}")
        assert repl.execute("x, threading.active_count()") == [2, 1]


def test_a_copy_that_is_interrupted_in_its_sleep_still_takes_over() -> None:
    """Code may send a signal to all processes of its session."""
    with opened(checkpoint="always") as repl:
        repl.execute("import signal\nx = 1")
        with pytest.raises(dspy.CodeExecutionError, match="KeyboardInterrupt"):
            repl.execute("os.killpg(0, signal.SIGINT)\ntime.sleep(10)")
        with pytest.raises(CellUndone):
            repl.execute(CRASH)
        assert repl.execute("x") == 1


def test_a_copy_draws_other_random_numbers_than_what_it_was_copied_from() -> None:
    """Python seeds them anew in a forked process; in a copy when it wakes."""
    with opened() as repl:
        repl.execute("import random")
        branches = repl.fork(2)
        drawn = {each.execute("random.random()") for each in (repl, *branches)}
        for branch in branches:
            branch.shutdown()
    assert len(drawn) == 3
