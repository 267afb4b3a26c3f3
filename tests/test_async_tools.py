"""Async tools run on the event loop of the caller if it waits for the run, else on one that nobody blocks."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import threading
import time
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM, Limits
from rlm_dspy.errors import EventLoopBlocked
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.testing import ScriptedLM
from tests.playing import block, fields, play_blocking, steps_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.playing import Play

SECONDS = 60
"""How long a test waits for what must happen."""
FACTORIES: list[Callable[[], Any]] = [LocalPythonInterpreter, PythonInterpreter, dspy.LocalInterpreter]
ASK = "SUBMIT(answer=str(ask()))"


async def acall(tool: Any, code: str = ASK, factory: Any = LocalPythonInterpreter, **options: Any) -> Any:
    """Await a run whose code calls a tool."""
    rlm = RLM("question -> answer", tools=[tool], interpreter_factory=factory, **options)
    with dspy.context(lm=ScriptedLM(lambda _: block(code))):
        return await rlm.acall(question="?")


def call(tool: Any, code: str = ASK, factory: Any = LocalPythonInterpreter, **options: Any) -> Any:
    """Do the same in a blocking way."""
    rlm = RLM("question -> answer", tools=[tool], interpreter_factory=factory, **options)
    with dspy.context(lm=ScriptedLM(lambda _: block(code))):
        return rlm(question="?")


# An awaited run


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


# How it ends


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
@pytest.mark.parametrize("limits", [Limits(max_cell_seconds=0.5, max_iters=1), Limits(max_seconds=2, max_iters=1)])
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
        interpreter_factory=lambda: PythonInterpreter(cell_seconds=0.5),
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


# A blocking run


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


# Sub-calls


REACT = "SUBMIT(answer=dspy.ReAct('q -> a', tools=[ask])(q='?').a)"


def react_replies(messages: list[dict[str, str]]) -> str:
    """Call the tool, finish, extract; and write the code that has that done."""
    text = messages[-1]["content"]
    if "Write one ```python block" in text:
        return block(REACT)
    if "next_tool_name" not in text:
        return fields(reasoning="", a=text.partition("observation_0 ## ]]")[2].split()[0])
    done = "observation_0" in text
    return fields(next_thought="", next_tool_name="finish" if done else "ask", next_tool_args="{}")


def test_a_react_written_in_the_repl_calls_async_tools(play: Play) -> None:
    """In both ways; DSPy's own refuses them when it is not awaited."""
    seen: list[Any] = []

    async def ask() -> str:
        await asyncio.sleep(0)
        seen.append(asyncio.get_running_loop())
        return "observed"

    played = play(RLM("question -> answer", tools=[ask]), react_replies, question="?")
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
        with dspy.context(lm=ScriptedLM(react_replies)):
            assert (await rlm.acall(question="?")).answer == "queued"


def test_a_declared_react_with_async_tools_is_awaited(play: Play) -> None:
    """As `await react.acall(...)` would be."""

    async def ask() -> str:
        await asyncio.sleep(0)
        return "observed"

    def replies(messages: list[dict[str, str]]) -> str:
        reply = react_replies(messages)
        return block("SUBMIT(answer=look(q='?'))") if reply == block(REACT) else reply

    rlm = RLM("question -> answer", subs={"look": dspy.ReAct("q -> a", tools=[ask])})
    assert play(rlm, replies, question="?").prediction.answer == "observed"


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


# Other ways to run a program


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
