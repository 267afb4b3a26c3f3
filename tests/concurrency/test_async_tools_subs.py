"""Async tools and modules in sub-calls: `ReAct`, declared modules, child RLMs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.testing import ScriptedLM
from tests.calling import SECONDS
from tests.playing import block, fields

if TYPE_CHECKING:
    from tests.playing import Play

REACT = "SUBMIT(answer=dspy.ReAct('q -> a', tools=[ask])(q='?').a)"


def observed(messages: list[dict[str, str]]) -> str:
    """Give the first observation of an agent as its answer."""
    return fields(reasoning="", a=messages[-1]["content"].partition("observation_0 ## ]]")[2].split()[0])


def react_lm(code: str = REACT) -> ScriptedLM:
    """Return an LM whose run has an agent call its tool, finish, and give what it observed."""
    steps = [fields(next_thought="", next_tool_name=name, next_tool_args="{}") for name in ("ask", "finish")]
    return ScriptedLM([*steps, observed], act=[block(code)])


def test_a_react_written_in_the_repl_calls_async_tools(play: Play) -> None:
    """In both ways; DSPy's own refuses them when it is not awaited."""
    seen: list[Any] = []

    async def ask() -> str:
        await asyncio.sleep(0)
        seen.append(asyncio.get_running_loop())
        return "observed"

    played = play(RLM("question -> answer", tools=[ask]), react_lm(), question="?")
    assert played.prediction.answer == "observed"
    assert len(seen) == 1


async def test_a_react_in_an_awaited_run_calls_its_tools_on_the_callers_loop() -> None:
    """The module itself runs in a thread."""
    queue: asyncio.Queue[str] = asyncio.Queue()

    async def ask() -> str:
        return await queue.get()

    asyncio.get_running_loop().call_later(0.1, queue.put_nowait, "queued")
    rlm = RLM("question -> answer", tools=[ask], interpreter_factory=LocalPythonInterpreter)
    async with asyncio.timeout(SECONDS):
        with dspy.context(lm=react_lm()):
            assert (await rlm.acall(question="?")).answer == "queued"


def test_a_declared_react_with_async_tools_is_awaited(play: Play) -> None:
    """As `await react.acall(...)` would be."""

    async def ask() -> str:
        await asyncio.sleep(0)
        return "observed"

    rlm = RLM("question -> answer", subs={"look": dspy.ReAct("q -> a", tools=[ask])})
    assert play(rlm, react_lm("SUBMIT(answer=look(q='?'))"), question="?").prediction.answer == "observed"


@pytest.mark.parametrize("awaited", [True, False])
async def test_a_declared_agent_of_the_second_kind_calls_tools_of_both_kinds(*, awaited: bool) -> None:
    """An async tool is awaited also in a blocking run; a plain one does not hold up the loop of an awaited run."""
    loop = asyncio.get_running_loop()

    async def ask() -> str:
        await asyncio.sleep(0)
        return "observed"

    def wait() -> str:
        return asyncio.run_coroutine_threadsafe(ask(), loop).result(SECONDS) if awaited else "observed"

    def reply(messages: list[dict[str, str]]) -> str:
        name, args = ("submit", '{"a": "yes"}') if "observed" in str(messages) else (function.__name__, "{}")
        return fields(next_thought="", tool_calls=f'{{"tool_calls": [{{"name": "{name}", "args": {args}}}]}}')

    for function in (ask, wait):
        subs = {"look": dspy.ReActV2("q -> a", tools=[function])}
        rlm = RLM("question -> answer", subs=subs, interpreter_factory=LocalPythonInterpreter)
        with dspy.context(lm=ScriptedLM(reply, act=[block("SUBMIT(answer=look(q='?'))")])):
            prediction = await rlm.acall(question="?") if awaited else rlm(question="?")
        assert prediction.answer == "yes"


class Later(dspy.Module):
    """Has an async form only."""

    async def aforward(self, text: str) -> str:
        """Return it in capitals."""
        await asyncio.sleep(0)
        return text.upper()


def test_a_declared_module_may_have_an_async_form_only(play: Play) -> None:
    """It is awaited, also in a blocking run."""
    rlm = RLM("question -> answer", subs=[Later()])
    code = "SUBMIT(answer=later('a') + ''.join(later.map(['b', 'c'])))"
    assert play(rlm, [block(code)], question="?").prediction.answer == "ABC"


class OneWay(ScriptedLM):
    """Answers, but cannot be awaited."""

    aforward = dspy.BaseLM.aforward


@pytest.mark.parametrize("kind", [ScriptedLM, OneWay])
async def test_the_tools_of_a_child_run_on_the_loop_of_the_root(kind: type[ScriptedLM]) -> None:
    """Also if its model cannot be awaited, and the child runs in a thread."""
    seen = []

    async def ask() -> str:
        await asyncio.sleep(0)
        seen.append(asyncio.get_running_loop())
        return "of the child"

    replies = [block("SUBMIT(answer=dspy.RLM('q -> a')(q='?').a)")]
    child = kind([block("SUBMIT(a=ask())")])
    rlm = RLM("question -> answer", tools=[ask], sub_lm=child, interpreter_factory=LocalPythonInterpreter)
    with dspy.context(lm=ScriptedLM(replies)):
        assert (await rlm.acall(question="?")).answer == "of the child"
    assert seen == [asyncio.get_running_loop()]
