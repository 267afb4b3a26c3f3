"""Async tools of a blocking run are run on an event loop that nobody blocks."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from rlm_dspy import RLM
from rlm_dspy.errors import EventLoopBlocked
from tests.calling import ASK, FACTORIES, SECONDS, acall, call
from tests.playing import block, play_blocking, steps_of

if TYPE_CHECKING:
    from tests.playing import Play


def test_the_calls_of_blocking_runs_share_an_event_loop(play: Play) -> None:
    """What one call has left there, such as a client's connection, the next one finds alive."""
    made: list[Any] = []

    async def ask() -> str:
        """Keep a task between the calls."""
        if not made:
            made.append(asyncio.create_task(asyncio.sleep(3600)))
        return f"{made[0].done()} {made[0].get_loop() is asyncio.get_running_loop()}"

    rlm = RLM("question -> answer", tools=[ask])
    code = "SUBMIT(answer=ask() + ', ' + ask())"
    assert play_blocking(rlm, [block(code)], question="?").prediction.answer == "False True, False True"
    assert play_blocking(rlm, [block(code)], question="?").prediction.answer == "False True, False True"
    made[0].get_loop().call_soon_threadsafe(made[0].cancel)


async def test_a_blocking_run_inside_a_running_event_loop_runs_its_tools_elsewhere() -> None:
    """In a notebook: `rlm(...)` blocks its loop."""
    seen = []

    async def ask() -> str:
        await asyncio.sleep(0)
        seen.append(asyncio.get_running_loop())
        return "answered"

    assert call(ask).answer == "answered"
    assert seen[0] is not asyncio.get_running_loop()


@pytest.mark.parametrize("factory", FACTORIES)
async def test_a_tool_that_waits_for_the_loop_that_the_run_blocks_is_an_error_that_names_the_fix(
    factory: Any,
) -> None:
    """For the caller: the model can do nothing about it. Awaited, the same run has its answer."""
    queue: asyncio.Queue[str] = asyncio.Queue()
    asyncio.get_running_loop().call_soon(queue.put_nowait, "fed by the loop")

    async def ask() -> str:
        return await queue.get()

    with pytest.raises(EventLoopBlocked, match=r"'ask'.*await rlm\.acall") as caught:
        call(ask, factory=factory)
    assert steps_of(caught)[0]["code"] == ASK
    assert (await acall(ask, factory=factory)).answer == "fed by the loop"


async def test_what_belongs_to_the_blocked_loop_names_the_fix_in_its_own_error() -> None:
    """asyncio refuses a future of another loop at once."""
    future = asyncio.get_running_loop().create_future()

    async def ask() -> str:
        return str(await future)

    run = call(ask, "try:\n    ask()\nexcept RuntimeError as error:\n    SUBMIT(answer=str(error))")
    assert "different loop" in run.answer
    assert "await rlm.acall(...)" in run.answer


async def test_a_tool_in_threads_of_its_own_may_take_its_time_in_a_blocked_loop() -> None:
    """It waits for nobody else, however long it takes."""

    async def ask() -> str:
        await asyncio.to_thread(time.sleep, 6)
        return "slept"

    assert call(ask).answer == "slept"


def test_an_async_tool_may_itself_run_an_rlm_in_a_blocking_way() -> None:
    """Its own loop is blocked then: the inner tools have another."""

    async def inner() -> str:
        await asyncio.sleep(0)
        return "inmost"

    async def ask() -> str:
        return str(call(inner, "SUBMIT(answer=inner())").answer)

    assert call(ask).answer == "inmost"


def test_a_tool_that_blocks_does_not_hold_up_those_of_other_runs() -> None:
    """An async function in which nothing is awaited."""
    release, blocked = threading.Event(), threading.Event()

    async def block_it() -> str:
        blocked.set()
        release.wait(SECONDS)
        return "released"

    async def ask() -> str:
        await asyncio.sleep(0)
        return "not held up"

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        blocking = pool.submit(call, block_it, "SUBMIT(answer=block_it())")
        assert blocked.wait(SECONDS)
        try:
            assert call(ask).answer == "not held up"
        finally:
            release.set()
        assert blocking.result().answer == "released"
