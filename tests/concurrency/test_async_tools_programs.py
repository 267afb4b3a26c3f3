"""Async tools in other ways to run: `asyncify`, `streamify`, `batch`, `dspy.RLM`, and interpreters alone."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.testing import ScriptedLM
from tests.calling import ASK, SECONDS
from tests.playing import block, fields

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def through_asyncify(rlm: RLM) -> Any:
    """Run it in a thread that this loop waits for."""
    return await dspy.asyncify(rlm)(question="?")


async def through_streamify(rlm: RLM, **options: Any) -> Any:
    """Take the last of what is streamed."""
    parts: AsyncIterator[Any] = dspy.streamify(rlm, **options)(question="?")
    return [part async for part in parts][-1]


@pytest.mark.parametrize(
    "way",
    [through_asyncify, through_streamify, functools.partial(through_streamify, is_async_program=True)],
    ids=["asyncify", "streamify", "streamify async"],
)
@pytest.mark.parametrize("factory", [LocalPythonInterpreter, PythonInterpreter])
async def test_asyncify_and_streamify_leave_tools_on_the_callers_loop(way: Any, factory: Any) -> None:
    """That loop waits for the thread in which the run is."""
    queue: asyncio.Queue[str] = asyncio.Queue()
    seen = []

    async def ask() -> str:
        seen.append(asyncio.get_running_loop())
        return await queue.get()

    asyncio.get_running_loop().call_later(0.1, queue.put_nowait, "queued")
    rlm = RLM("question -> answer", tools=[ask], interpreter_factory=factory)
    async with asyncio.timeout(SECONDS):
        with dspy.context(lm=ScriptedLM([block(ASK)])):
            assert (await way(rlm)).answer == "queued"
    assert seen == [asyncio.get_running_loop()]


def test_many_blocking_runs_at_once_share_the_loop_of_their_tools() -> None:
    """`batch` and `dspy.Parallel`: a semaphore of the tool's own bounds them all."""
    one_at_once = asyncio.Semaphore(1)

    async def ask() -> str:
        async with one_at_once:
            await asyncio.sleep(0.01)
            return "alone"

    rlm = RLM("question -> answer", tools=[ask], interpreter_factory=LocalPythonInterpreter)
    examples = [dspy.Example(question="?").with_inputs("question") for _ in range(8)]
    with dspy.context(lm=ScriptedLM(lambda _: block(ASK))):
        batch = rlm.batch(examples, num_threads=4, disable_progress_bar=True)
        parallel = dspy.Parallel(num_threads=4, disable_progress_bar=True)([(rlm, {"question": "?"})] * 8)
    assert [run.answer for run in [*batch, *parallel]] == ["alone"] * 16


@pytest.mark.parametrize("factory", [LocalPythonInterpreter, PythonInterpreter])
async def test_unmodified_dspy_rlm_runs_async_tools_in_our_interpreters(factory: Any) -> None:
    """Awaited, it runs its code on the event loop and so blocks it."""

    async def ask() -> str:
        """Answer."""
        await asyncio.sleep(0)
        return "answered"

    rlm = dspy.RLM("question -> answer", tools=[ask], interpreter_factory=factory)
    lm = ScriptedLM(lambda _: fields(reasoning="", code=f"```python\n{ASK}\n```"))
    with dspy.context(lm=lm):
        assert (await rlm.acall(question="?")).answer == "answered"
        assert (await asyncio.to_thread(rlm, question="?")).answer == "answered"


async def test_aexecute_runs_async_tools_on_its_event_loop() -> None:
    """It leaves the loop free."""
    seen = []

    async def ask() -> str:
        await asyncio.sleep(0)
        seen.append(asyncio.get_running_loop())
        return "here"

    with PythonInterpreter({"ask": ask}) as interpreter:
        assert await interpreter.aexecute("ask()") == "here"
    assert seen == [asyncio.get_running_loop()]


@pytest.mark.parametrize("factory", [LocalPythonInterpreter, PythonInterpreter])
def test_an_interpreter_takes_a_dspy_tool_around_an_async_function(factory: Any) -> None:
    """Called by name; awaited where code awaits it."""

    async def ask(page: int) -> str:
        await asyncio.sleep(0)
        return f"page {page}"

    with factory({"ask": dspy.Tool(ask)}) as interpreter:
        assert interpreter.execute("ask(page=1)") == "page 1"
        assert interpreter.execute("await ask(page=2)") == "page 2"
