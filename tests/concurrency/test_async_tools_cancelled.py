"""Async tools end with their run: limits of time, a cancelled run and an interrupt cancel them."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import dspy
import pytest

from rlm_dspy import RLM, Limits
from rlm_dspy.interpreters import CellLimits, LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.testing import ScriptedLM
from tests.calling import FACTORIES, SECONDS, acall, call
from tests.playing import block


class Waiting:
    """An async tool that waits for ever, and notes that it was cancelled."""

    def __init__(self) -> None:
        self.begun, self.cancelled = threading.Event(), threading.Event()

    async def __call__(self) -> str:
        """Wait."""
        self.begun.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return "never"


@pytest.mark.parametrize("factory", FACTORIES)
async def test_cancelling_a_run_cancels_the_tool_that_it_waits_for(factory: Any) -> None:
    """At once, on the caller's loop."""
    tool = Waiting()
    run = asyncio.create_task(acall(dspy.Tool(tool, name="ask"), factory=factory))
    assert await asyncio.to_thread(tool.begun.wait, SECONDS)
    run.cancel()
    begun = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert tool.cancelled.is_set()
    assert time.monotonic() - begun < SECONDS / 2


@pytest.mark.parametrize("how", ["awaiting", "blocking"])
@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("limits", [Limits(max_cell_seconds=1.5, max_iters=1), Limits(max_seconds=3, max_iters=1)])
async def test_the_limits_of_time_reach_a_tool(how: str, factory: Any, limits: Limits) -> None:
    """It is cancelled, the code may catch that, and the run goes on to its end."""
    tool = Waiting()
    code = "try:\n    ask()\nexcept Exception as error:\n    SUBMIT(answer=type(error).__name__ + str(error))"
    given = dspy.Tool(tool, name="ask")
    if how == "awaiting":
        run = await acall(given, code, factory, limits=limits)
    else:
        run = await asyncio.to_thread(call, given, code, factory, limits=limits)
    assert tool.cancelled.wait(SECONDS)
    assert "LimitExceeded" in run.answer
    assert "seconds" in run.answer


@pytest.mark.parametrize("how", ["awaiting", "blocking"])
async def test_the_deadline_of_a_cell_reaches_a_tool(how: str) -> None:
    """What PythonInterpreter is made with."""
    tool, submit = Waiting(), "SUBMIT(answer='after')"
    replies = [block("ask()"), block(submit)]
    rlm = RLM(
        "question -> answer",
        tools=[dspy.Tool(tool, name="ask")],
        interpreter_factory=lambda: PythonInterpreter(cell_limits=CellLimits(seconds=0.5)),
    )
    with dspy.context(lm=ScriptedLM(replies)):
        if how == "awaiting":
            run = await rlm.acall(question="?")
        else:
            run = await asyncio.to_thread(rlm, question="?")
    assert run.answer == "after"
    assert tool.cancelled.wait(SECONDS)


def test_interrupting_a_cell_cancels_the_async_tool_that_it_waits_for() -> None:
    """Code in this process cannot be stopped while it waits in a tool that is sync."""
    tool = Waiting()
    for interpreter in (LocalPythonInterpreter({"ask": tool}), PythonInterpreter({"ask": tool})):
        tool.begun.clear()
        tool.cancelled.clear()

        def interrupt(interpreter: Any = interpreter) -> None:
            tool.begun.wait(SECONDS)
            interpreter.interrupt()

        with interpreter:
            threading.Thread(target=interrupt).start()
            with pytest.raises(dspy.CodeExecutionError):
                interpreter.execute("ask()")
            assert tool.cancelled.wait(SECONDS)
            assert interpreter.execute("6 * 7") == 42


async def test_a_failed_cell_cancels_no_tool_of_a_branch() -> None:
    """Each branch has calls of its own."""
    release, waits = asyncio.Event(), asyncio.Event()

    async def ask() -> str:
        waits.set()
        await release.wait()
        return "answered"

    with PythonInterpreter({"ask": ask}) as interpreter:
        (branch,) = await asyncio.to_thread(interpreter.fork)
        with branch:
            asking = asyncio.create_task(branch.aexecute("ask()"))
            await waits.wait()
            with pytest.raises(dspy.CodeExecutionError):
                await interpreter.aexecute("1 / 0")
            release.set()
            assert "answered" in str(await asking)
