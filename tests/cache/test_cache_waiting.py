"""`SubCallCache`: of those who ask the same at once one asks and the others wait, and none waits for ever."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM, Limits, SubCallCache
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.testing import ScriptedLM
from tests.asking import PROCESSES, in_threads, start, whole
from tests.playing import block

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("caches", [1, 2])
def test_threads_ask_once(tmp_path: Path, caches: int) -> None:
    """Also by several caches of one file, named differently."""
    (tmp_path / "link").symlink_to(tmp_path)
    made = [SubCallCache(tmp_path / "a.db"), SubCallCache(tmp_path / "link" / "a.db")][:caches]
    asked = []

    def ask() -> str:
        asked.append(1)
        time.sleep(0.1)
        return "x"

    given = in_threads(*[lambda n=n: made[n % caches].once("a", ask) for n in range(32)])
    assert sorted(cached for _, cached in given) == [False, *[True] * 31]
    assert asked == [1]


@pytest.mark.parametrize("path", [None, "answers.db"])
def test_what_is_asked_inside_of_one_another_does_not_wait_for_ever(tmp_path: Path, path: str | None) -> None:
    """A waits for B, which waits for A; and A for itself."""
    cache = SubCallCache(tmp_path / path if path else None)
    both = threading.Barrier(2)

    def nested(outer: str, inner: str) -> Any:
        def ask() -> Any:
            both.wait(60)
            return [outer, cache.once(inner, lambda: [inner])[0]]

        return cache.once(outer, ask)[0]

    given = in_threads(lambda: nested("a", "b"), lambda: nested("b", "a"))
    assert given[0][0] == "a"
    assert given[1][0] == "b"
    assert cache.once("self", lambda: [cache.once("self", lambda: 1)[0]])[1] is False


def _nested(path: Path, outer: str, inner: str, both: Any) -> None:
    cache = SubCallCache(path)

    def ask() -> Any:
        both.wait(60)
        return [outer, cache.once(inner, lambda: [inner])[0]]

    assert cache.once(outer, ask)[0][0] == outer


def test_processes_that_ask_inside_of_one_another_do_not_wait_for_ever(tmp_path: Path) -> None:
    """One holds A and wants B, the other holds B and wants A."""
    path, both = tmp_path / "answers.db", PROCESSES.Barrier(2)
    processes = [start(_nested, path, "a", "b", both), start(_nested, path, "b", "a", both)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert whole(path) == 2


def test_what_is_asked_inside_of_another_waits_where_it_can(tmp_path: Path) -> None:
    """It is not paid for twice."""
    cache = SubCallCache(tmp_path / "answers.db")
    begun, asked = threading.Event(), []

    def slow() -> str:
        asked.append(1)
        begun.set()
        time.sleep(0.3)
        return "b"

    def outer() -> Any:
        begun.wait(60)
        return cache.once("b", slow)

    assert in_threads(lambda: cache.once("b", slow), lambda: cache.once("a", outer)[0]) == [
        ("b", False),
        ("b", True),
    ]
    assert asked == [1]


def test_a_sub_call_in_a_slot_may_wait_for_one_that_has_none() -> None:
    """With one slot, what is asked inside of a sub-call is the same as what the code asks beside it."""

    class Deep(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = RLM("text -> out", policy=None)

        def forward(self, text: str) -> dspy.Prediction:
            return self.inner(text=text)

    code = (
        "import threading\n"
        "found = {}\n"
        "one = threading.Thread(target=lambda: found.update(deep=deep(text='t')))\n"
        "one.start()\n"
        "import time; time.sleep(0.3)\n"
        "found['query'] = llm_query('X')\n"
        "one.join()\n"
        "SUBMIT(answer=str(sorted(found)))"
    )

    def child(_: object) -> str:
        time.sleep(1.0)
        return block("SUBMIT(out=llm_query('X'))")

    sub = Deep()
    rlm = RLM(
        "question -> answer", subs={"deep": sub}, limits=Limits(max_concurrency=1, max_seconds=30), policy=None
    )
    lm = ScriptedLM(act=[block(code)], child=child, query=["x"])
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
        prediction = rlm(question="?")
    assert prediction.answer == "['deep', 'query']"
    assert prediction.usage["seconds"] < 15


async def test_a_run_that_waits_for_another_does_not_hold_up_the_event_loop(tmp_path: Path) -> None:
    """Two awaited runs ask the same; one asks, the loop goes on: the answer comes when it has, or never."""
    cache, both_run, ticked, asked = SubCallCache(tmp_path / "answers.db"), asyncio.Event(), threading.Event(), []
    replies = itertools.count(1)
    loop = asyncio.get_running_loop()

    def reply(messages: list[dict[str, str]]) -> str:
        if messages[-1]["content"] != "X":
            if next(replies) == 2:
                loop.call_soon_threadsafe(both_run.set)
            return block("SUBMIT(answer=llm_query('X'))")
        asked.append(1)
        assert ticked.wait(60)
        return "x"

    async def tick() -> None:
        await both_run.wait()
        for _ in range(50):
            await asyncio.sleep(0.02)
        ticked.set()

    ticking = asyncio.create_task(tick())
    rlm = RLM("q -> answer", cache=cache, policy=None)
    with dspy.context(lm=ScriptedLM(reply), interpreter_factory=LocalPythonInterpreter):
        both = await asyncio.gather(rlm.acall(q="1"), rlm.acall(q="2"))
    await ticking
    assert [each.answer for each in both] == ["x", "x"]
    assert asked == [1]


async def test_whoever_waits_for_a_run_that_is_cancelled_asks_itself() -> None:
    """The asker is cancelled; the other has its answer, and the first request its own only after that."""
    begun, asked, over = asyncio.Event(), [], threading.Event()
    loop = asyncio.get_running_loop()

    def reply(messages: list[dict[str, str]]) -> str:
        if messages[-1]["content"] != "X":
            return block("SUBMIT(answer=llm_query('X'))")
        asked.append(1)
        loop.call_soon_threadsafe(begun.set)
        if len(asked) == 1:
            over.wait(60)
        return "x"

    rlm = RLM("q -> answer", cache=SubCallCache(), policy=None)
    with dspy.context(lm=ScriptedLM(reply), interpreter_factory=LocalPythonInterpreter):
        first = asyncio.create_task(rlm.acall(q="1"))
        await begun.wait()
        second = asyncio.create_task(rlm.acall(q="2"))
        await asyncio.sleep(0.2)
        first.cancel()
        assert (await second).answer == "x"
        over.set()
        with pytest.raises(asyncio.CancelledError):
            await first
    assert asked == [1, 1]
