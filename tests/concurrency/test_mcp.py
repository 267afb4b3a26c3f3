"""The tools of a real MCP server over stdio, in awaited runs and in blocking ones."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from typing import TYPE_CHECKING, Any

import dspy
import pytest
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

from rlm_dspy import RLM, Limits
from rlm_dspy.errors import EventLoopBlocked
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.testing import ScriptedLM
from tests.playing import block, fields, told

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rlm_dspy.testing import Reply

SECONDS = 60
SERVER = StdioServerParameters(command=sys.executable, args=["-m", "tests.mcp_server"])
FACTORIES = [LocalPythonInterpreter, PythonInterpreter, dspy.LocalInterpreter]


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[list[dspy.Tool]]:
    """Start the server; yield its tools as DSPy converts them."""
    async with asyncio.timeout(SECONDS):
        async with stdio_client(SERVER) as streams, ClientSession(*streams) as session:
            await session.initialize()
            listed = await session.list_tools()
            yield [dspy.Tool.from_mcp_tool(session, tool) for tool in listed.tools]


def scripted(code: str) -> Any:
    """Return the settings under which every turn runs this code."""
    return dspy.context(lm=ScriptedLM(lambda _: block(code)))


@pytest.mark.parametrize("factory", FACTORIES)
async def test_an_awaited_run_calls_mcp_tools(factory: Any) -> None:
    """By name and by position, plainly, one after the other; the session lives on this event loop."""
    code = "SUBMIT(answer=[fetch(page=1), fetch(2), fetch(3, chapter='two')])"
    async with connected() as tools:
        rlm = RLM("question -> answer: list[str]", tools=tools, interpreter_factory=factory)
        with scripted(code):
            runs = await asyncio.gather(*(rlm.acall(question="?") for _ in range(2)))
    pages = ["page 1 of chapter one", "page 2 of chapter one", "page 3 of chapter two"]
    assert [run.answer for run in runs] == [pages, pages]


@pytest.mark.parametrize("factory", [LocalPythonInterpreter, PythonInterpreter])
async def test_code_may_await_and_gather_mcp_tools(factory: Any) -> None:
    """As it would write it outside."""
    code = "import asyncio\nSUBMIT(answer=await asyncio.gather(*(fetch(page=n) for n in range(5))))"
    async with connected() as tools:
        rlm = RLM("question -> answer: list[str]", tools=tools, interpreter_factory=factory)
        with scripted(code):
            run = await rlm.acall(question="?")
    assert run.answer == [f"page {number} of chapter one" for number in range(5)]


async def test_the_arguments_of_mcp_tools_are_told_and_checked() -> None:
    """DSPy's function for them names none."""
    lm = ScriptedLM([block("fetch('many')"), block("fail(reason='no paper')"), block("SUBMIT(answer='told')")])
    async with connected() as tools:
        rlm = RLM("question -> answer", tools=tools, interpreter_factory=LocalPythonInterpreter)
        with dspy.context(lm=lm):
            run = await rlm.acall(question="?")
    assert "- fetch(page: int, chapter: str = 'one')  # Return a page." in told(lm.script.calls[0])
    wrong, failed, _ = run.trajectory
    assert "Arg page is invalid" in wrong["output"]
    assert "no paper" in failed["output"]


async def test_a_react_in_the_repl_calls_mcp_tools() -> None:
    """It runs in a thread, its tools on the event loop of the session."""
    page = "page 7 of chapter one"
    replies: list[Reply] = [
        fields(next_thought="", next_tool_name="fetch", next_tool_args='{"page": 7}'),
        fields(next_thought="", next_tool_name="finish", next_tool_args="{}"),
        lambda said: fields(reasoning="", a=page if page in said[-1]["content"] else "nothing"),
    ]
    lm = ScriptedLM(replies, act=[block("SUBMIT(answer=dspy.ReAct('q -> a', tools=[fetch])(q='?').a)")])
    async with connected() as tools:
        rlm = RLM("question -> answer", tools=tools, interpreter_factory=LocalPythonInterpreter)
        with dspy.context(lm=lm):
            assert (await rlm.acall(question="?")).answer == page


async def test_the_end_of_the_time_cancels_a_call_and_leaves_the_session_usable() -> None:
    """The server would have answered much later."""
    code = "try:\n    wait(seconds=3600)\nexcept Exception as error:\n    SUBMIT(answer=str(error))"
    async with connected() as tools:
        rlm = RLM(
            "question -> answer",
            tools=tools,
            interpreter_factory=LocalPythonInterpreter,
            limits=Limits(max_cell_seconds=0.5),
        )
        with scripted(code):
            assert "max_cell_seconds" in (await rlm.acall(question="?")).answer
        with scripted("SUBMIT(answer=fetch(1))"):
            assert (await rlm.acall(question="?")).answer == "page 1 of chapter one"


async def test_a_blocking_run_in_the_event_loop_of_a_session_names_the_fix_and_leaves_it_usable() -> None:
    """The session cannot answer while its loop is blocked."""
    async with connected() as tools:
        rlm = RLM("question -> answer", tools=tools, interpreter_factory=PythonInterpreter)
        with scripted("SUBMIT(answer=fetch(1))"):
            with pytest.raises(EventLoopBlocked, match=r"'fetch'.*await rlm\.acall"):
                rlm(question="?")
            assert (await rlm.acall(question="?")).answer == "page 1 of chapter one"
            assert (await dspy.asyncify(rlm)(question="?")).answer == "page 1 of chapter one"


def test_sync_code_calls_mcp_tools_of_a_session_in_another_thread() -> None:
    """The run is awaited on the loop of the session."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    ready: asyncio.Queue[list[dspy.Tool]] = asyncio.Queue()
    done = asyncio.Event()

    async def hold() -> None:
        async with connected() as tools:
            await ready.put(tools)
            await done.wait()

    holding = asyncio.run_coroutine_threadsafe(hold(), loop)
    tools = asyncio.run_coroutine_threadsafe(ready.get(), loop).result(SECONDS)
    rlm = RLM("question -> answer", tools=tools, interpreter_factory=LocalPythonInterpreter)
    with scripted("SUBMIT(answer=fetch(1))"):
        run = asyncio.run_coroutine_threadsafe(rlm.acall(question="?"), loop).result(SECONDS)
    assert run.answer == "page 1 of chapter one"
    loop.call_soon_threadsafe(done.set)
    holding.result(SECONDS)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(SECONDS)
    loop.close()


def test_a_blocking_run_calls_a_tool_that_opens_its_own_session() -> None:
    """It needs no event loop of the caller's."""

    async def fetch(page: int) -> str:
        """Return a page."""
        async with connected() as tools:
            (tool,) = [tool for tool in tools if tool.name == "fetch"]
            return str(await tool.acall(page=page))

    rlm = RLM("question -> answer", tools=[fetch], interpreter_factory=PythonInterpreter)
    with scripted("SUBMIT(answer=fetch(1) + ', ' + fetch(2))"):
        assert rlm(question="?").answer == "page 1 of chapter one, page 2 of chapter one"
