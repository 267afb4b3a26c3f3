"""Async tools of an awaited run are run on the event loop of its caller."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from typing import Any

import dspy
import pytest

from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from tests.calling import FACTORIES, SECONDS, acall, call


@pytest.mark.parametrize("factory", FACTORIES)
async def test_an_async_tool_runs_on_the_callers_event_loop(factory: Any) -> None:
    """In every interpreter."""
    seen = []

    async def ask() -> str:
        await asyncio.sleep(0)
        seen.append(asyncio.get_running_loop())
        return "here"

    assert (await acall(ask, factory=factory)).answer == "here"
    assert seen == [asyncio.get_running_loop()]


class Asks:
    """An object that is called like an async function."""

    async def __call__(self) -> asyncio.AbstractEventLoop:
        await asyncio.sleep(0)
        return asyncio.get_running_loop()


async def plain() -> asyncio.AbstractEventLoop:
    """Return the event loop."""
    return await Asks()()


async def with_options(_first: int, **_options: str) -> asyncio.AbstractEventLoop:
    """Return the event loop."""
    return await Asks()()


async def with_any(*_args: int) -> asyncio.AbstractEventLoop:
    """Return the event loop."""
    return await Asks()()


@pytest.mark.parametrize(
    ("tool", "code"),
    [
        (dspy.Tool(plain, name="ask"), "ask()"),
        (dspy.Tool(Asks(), name="ask"), "ask()"),
        (dspy.Tool(functools.partial(with_options, 1), name="ask"), "ask()"),
        (dspy.Tool(lambda: plain(), name="ask"), "ask()"),  # noqa: PLW0108  # sync itself, but gives a coroutine
        (dspy.Tool(with_any, name="ask"), "ask(1, 2)"),
        (dspy.Tool(with_options, name="ask"), "ask(1, more='x')"),
        (dspy.Tool(plain, name="ask"), "await ask()"),
        (dspy.Tool(plain, name="ask"), "(await __import__('asyncio').gather(ask(), ask()))[1]"),
    ],
)
async def test_however_an_async_tool_is_made_and_called(tool: dspy.Tool, code: str) -> None:
    """A function, an object, a partial, a lambda; plainly, awaited, gathered."""
    here = str(asyncio.get_running_loop())
    assert (await acall(tool, f"SUBMIT(answer=str({code}))")).answer == here


async def test_code_calls_an_async_tool_from_threads_at_once() -> None:
    """Three calls wait for one another on the caller's loop."""
    together = asyncio.Barrier(3)

    async def ask(number: int) -> int:
        async with asyncio.timeout(SECONDS):
            await together.wait()
        return number

    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(3) as pool:\n    SUBMIT(answer=str(sorted(pool.map(ask, [1, 2, 3]))))"
    )
    for factory in (LocalPythonInterpreter, PythonInterpreter):
        assert (await acall(ask, code, factory)).answer == "[1, 2, 3]"


@pytest.mark.parametrize("factory", FACTORIES)
async def test_a_tool_waits_for_a_queue_a_lock_and_a_future_of_the_callers_loop(factory: Any) -> None:
    """All are made there; another task fills, frees and sets them while the tool waits."""
    queue: asyncio.Queue[str] = asyncio.Queue()
    lock, future = asyncio.Lock(), asyncio.get_running_loop().create_future()
    waits = asyncio.Event()

    async def ask() -> str:
        waits.set()
        async with lock:
            return f"{await queue.get()}{await future}"

    async def serve() -> None:
        async with lock:
            await waits.wait()
            await queue.put("from the queue, ")
            future.set_result("from the future")

    serving = asyncio.create_task(serve())
    await asyncio.sleep(0)
    async with asyncio.timeout(SECONDS):
        assert (await acall(ask, factory=factory)).answer == "from the queue, from the future"
    await serving


async def test_a_connection_of_the_callers_loop_serves_the_calls_of_many_runs() -> None:
    """Its streams belong to this loop, and answer one call after the other."""
    ended = asyncio.Event()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line.upper())
        writer.close()
        await writer.wait_closed()
        ended.set()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    one_at_once = asyncio.Lock()

    async def ask(text: str) -> str:
        async with one_at_once:
            writer.write(f"{text}\n".encode())
            return (await reader.readline()).decode().strip()

    async with asyncio.timeout(SECONDS), server:
        runs = await asyncio.gather(*(acall(ask, "SUBMIT(answer=ask('a') + ask('b'))") for _ in range(3)))
        writer.close()
        await writer.wait_closed()
        await ended.wait()
    assert [run.answer for run in runs] == ["AB"] * 3


mark: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="none")


@pytest.mark.parametrize("play_in", ["awaiting", "blocking"])
async def test_a_tool_sees_the_context_of_its_caller(play_in: str) -> None:
    """`dspy.context` and the caller's own variables."""

    async def ask() -> str:
        await asyncio.sleep(0)
        return f"{mark.get()} {dspy.settings.max_errors}"

    mark.set("of the caller")
    with dspy.context(max_errors=123):
        run = await acall(ask) if play_in == "awaiting" else call(ask)
    assert run.answer == "of the caller 123"


@pytest.mark.parametrize("factory", FACTORIES)
async def test_what_an_async_tool_raises_is_told_to_the_code(factory: Any) -> None:
    """An exit of a tool is an error too: it must not end the program of the caller."""

    async def ask() -> str:
        await asyncio.sleep(0)
        raise ValueError("no such page")

    async def leave() -> str:
        await asyncio.sleep(0)
        raise SystemExit(3)

    caught = "try:\n    {}()\nexcept Exception as error:\n    SUBMIT(answer=str(error))"
    assert (await acall(ask, caught.format("ask"), factory)).answer.endswith("no such page")
    left = await acall(leave, caught.format("leave"), factory)
    left_too = await asyncio.to_thread(call, leave, caught.format("leave"), factory)
    assert left.answer.endswith("leave exited with 3")
    assert left_too.answer.endswith("leave exited with 3")


async def test_an_interrupt_that_a_tool_raises_reaches_the_caller_and_not_the_loop() -> None:
    """In a task it would end the event loop under everybody else."""

    async def ask() -> str:
        raise KeyboardInterrupt

    caught: BaseException | None = None
    try:
        await acall(ask)
    except BaseException as error:  # noqa: BLE001 (pytest.raises would let it through in a task)
        caught = error
    assert isinstance(caught, KeyboardInterrupt)
