"""Code that takes too long is stopped, and a run that is cancelled leaves nothing running."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM, Limits
from rlm_dspy.concurrency.timeouts import Watchdog
from rlm_dspy.errors import Pause
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.testing import ScriptedLM
from tests.interpreters.waiting import comes_true, nothing_executes
from tests.playing import block, is_last_turn
from tests.role_lm import RoleLM

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_dspy.testing import Messages

SECONDS = 60
LOOPS = "found = 1\nwhile True: pass"


@pytest.mark.parametrize("factory", [LocalPythonInterpreter, PythonInterpreter, dspy.LocalInterpreter])
def test_a_cell_that_takes_too_long_is_stopped_and_the_run_goes_on(factory: Any) -> None:
    """The model reads why. Where a cell can be stopped alone, its variables are kept."""
    replies = [block(LOOPS), block("SUBMIT(answer=str('found' in globals()))")]
    rlm = RLM("question -> answer", limits=Limits(max_cell_seconds=0.5), interpreter_factory=factory)
    with dspy.context(lm=ScriptedLM(replies)):
        prediction = rlm(question="?")
    assert prediction.answer == str(factory is not dspy.LocalInterpreter)
    assert prediction.trajectory[0]["kind"] in {"error", "interpreter_lost"}
    assert "max_cell_seconds=0.5" in prediction.trajectory[0]["output"]
    assert prediction.usage["limit"] is None


@pytest.mark.parametrize("seconds", [2, 3])
@pytest.mark.parametrize("factory", [LocalPythonInterpreter, PythonInterpreter])
def test_the_wall_clock_stops_the_code_and_leaves_time_for_a_last_turn(factory: Any, seconds: int) -> None:
    """Which is told that it is the last."""

    def reply(messages: Messages) -> str:
        return block("SUBMIT(answer='in time')" if is_last_turn(messages) else LOOPS)

    rlm = RLM("question -> answer", limits=Limits(max_seconds=seconds), interpreter_factory=factory)
    with dspy.context(lm=ScriptedLM(reply)):
        prediction = rlm(question="?")
    assert (prediction.answer, prediction.usage["limit"]) == ("in time", "max_seconds")
    assert len(prediction.trajectory) == 2


def test_code_is_stopped_even_if_the_warning_fails(caplog: pytest.LogCaptureFixture) -> None:
    """What went wrong is logged."""
    stopped = threading.Event()

    def warn() -> None:
        raise ValueError("no warning")

    with Watchdog(0.01, warn, stopped.set, moment=0.01):
        assert stopped.wait(SECONDS)
    assert "no warning" in caplog.text


@pytest.mark.parametrize("awaited", [True, False])
async def test_a_model_that_does_not_reply_in_time_is_not_waited_for(*, awaited: bool) -> None:
    """An awaited call is cancelled, a blocking one goes on to nobody; its failure is counted."""
    rlm = RLM("question -> answer", limits=Limits(max_seconds=0.5), interpreter_factory=LocalPythonInterpreter)
    began = time.monotonic()
    with dspy.context(lm=ScriptedLM([block("1")] * 2, seconds=SECONDS)):
        prediction = await rlm.acall(question="?") if awaited else rlm(question="?")
    assert time.monotonic() - began < SECONDS / 2
    assert (prediction.stop, prediction.usage["limit"]) == ("unanswered", "max_seconds")
    assert prediction.usage["failures"] == prediction.usage["calls"] > 0
    assert "The model had not replied." in str(prediction.final_reasoning)


@pytest.mark.parametrize("factory", [LocalPythonInterpreter, PythonInterpreter, dspy.LocalInterpreter])
async def test_a_cancelled_run_leaves_no_thread_in_its_code(factory: Any) -> None:
    """Cancelling waits until the cell has stopped; the turn that was cut short is a step."""
    in_code = threading.Event()

    def here() -> None:
        """Say that the code runs."""
        in_code.set()

    rlm = RLM("question -> answer", tools=[here], interpreter_factory=factory)
    with dspy.context(lm=ScriptedLM([block("here()\nwhile True: pass")])):
        run = asyncio.create_task(rlm.acall(question="?"))
        await asyncio.to_thread(in_code.wait, SECONDS)
        run.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await run
    assert [step["code"] for step in vars(caught.value)["trajectory"]] == ["here()\nwhile True: pass"]
    assert await asyncio.to_thread(comes_true, nothing_executes)


@pytest.mark.parametrize("factory", [LocalPythonInterpreter, PythonInterpreter])
async def test_a_cancelled_run_keeps_what_its_last_code_printed_and_what_the_turn_cost(factory: Any) -> None:
    """Both are paid for."""
    in_code = threading.Event()

    def here() -> None:
        """Say that the code runs."""
        in_code.set()

    rlm = RLM("question -> answer", tools=[here], interpreter_factory=factory)
    with dspy.context(lm=ScriptedLM([block("print(llm_query('?'))\nhere()\nwhile True: pass"), "a fox"])):
        run = asyncio.create_task(rlm.acall(question="?"))
        await asyncio.to_thread(in_code.wait, SECONDS)
        run.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await run
    (step,) = vars(caught.value)["trajectory"]
    assert step["output"] == "a fox\nThe run was interrupted in this turn."
    assert step["spent"]["calls"] == vars(caught.value)["usage"]["calls"] == 2
    assert step["seconds"] > 0


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Pause("later")], ids=["interrupt", "pause"])
@pytest.mark.parametrize("factory", [LocalPythonInterpreter, PythonInterpreter])
def test_what_was_printed_before_an_error_that_ends_the_run_is_kept(factory: Any, error: BaseException) -> None:
    """Ctrl-C and a pause end the code where it is."""

    def stop(*_: Any) -> None:
        """End the run."""
        raise error

    rlm = RLM("question -> answer", tools=[stop], on_tool=stop, interpreter_factory=factory)
    code = block("print('found it')\nstop()\nprint('never')")
    with dspy.context(lm=ScriptedLM([code])), pytest.raises(type(error)) as caught:
        rlm(question="?")
    (step,) = vars(caught.value)["trajectory"]
    assert step["output"].splitlines()[0] == "found it"
    assert "never" not in step["output"]
    assert step["spent"]["calls"] == 1


def test_a_turn_whose_code_never_ran_shows_no_output_of_the_turn_before() -> None:
    """A hook stops the run before the second block."""

    def review(code: str) -> None:
        if "2" in code:
            raise Pause("later")

    rlm = RLM("question -> answer", on_code=review, interpreter_factory=LocalPythonInterpreter)
    lm = ScriptedLM([block("print('first')"), block("2")])
    with dspy.context(lm=lm), pytest.raises(Pause) as caught:
        rlm(question="?")
    outputs = [step["output"] for step in vars(caught.value)["trajectory"]]
    assert outputs == ["first", "The run was paused: later"]


def test_an_interrupt_reaches_no_code_behind_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is asked for, and whenever.

    One that lands in a finalizer or a callback of the garbage collector (hypothesis has one) is told as
    unraisable, and the next may land in the telling.
    """
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    repl, over = LocalPythonInterpreter(), threading.Event()

    def interrupt() -> None:
        while not over.is_set():
            repl.interrupt()
            time.sleep(0)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        for _ in range(200):
            try:
                repl.execute("sum(range(2000))")
            except dspy.CodeExecutionError as error:
                assert "CellStopped" in str(error)  # noqa: PT017
    finally:
        over.set()
        thread.join()
        repl.shutdown()


def test_a_watchdog_warns_then_stops_until_its_scope_ends() -> None:
    """And does neither if the scope ends first."""
    told: list[str] = []
    stopped = threading.Event()

    def stop() -> None:
        told.append("stop")
        stopped.set()

    with Watchdog(0.01, lambda: told.append("warn"), stop, moment=0.01) as watchdog:
        stopped.wait(SECONDS)
    assert told[:2] == ["warn", "stop"]
    assert watchdog.expired
    with Watchdog(SECONDS, lambda: told.append("never"), stop, moment=SECONDS) as watchdog:
        pass
    assert "never" not in told
    assert not watchdog.expired


@pytest.mark.parametrize("factory", [LocalPythonInterpreter, PythonInterpreter])
def test_sub_calls_under_way_fail_when_time_is_over_and_those_that_finished_are_kept(factory: Any) -> None:
    """The batch returns to the code, which can use what it has; the step tells of each."""
    slow = threading.Event()

    def reply(messages: Messages) -> str:
        prompt = messages[-1]["content"]
        if prompt.startswith("slow"):
            slow.wait(SECONDS)
        if prompt.startswith(("slow", "fast")):
            return "an answer"
        return block(
            "got = llm_query_batched(['fast 1', 'slow', 'fast 2'])\nSUBMIT(answer=[bool(g) for g in got])"
        )

    limits = Limits(max_cell_seconds=4.0)  # a busy machine starts the fast ones late
    rlm = RLM("question -> answer: list[bool]", limits=limits, interpreter_factory=factory, cache=False)
    try:
        with dspy.context(lm=ScriptedLM(reply)):
            prediction = rlm(question="?")
    finally:
        slow.set()
    assert prediction.answer == [True, False, True]
    calls = prediction.trajectory[0]["calls"]
    assert [bool(call["output"]) for call in calls] == [True, False, True]
    assert "max_cell_seconds" in calls[1]["error"]


class HangingServer:
    """An OpenAI-compatible server that answers a root's turns with `code`, and nothing else ever."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.asked = self.hung_up = 0
        self.changed = asyncio.Condition()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length:")[1].split("\r\n")[0])
        if json.loads(await reader.readexactly(length))["user"] != "act":
            await self._count(asked=1)
            with contextlib.suppress(ConnectionError):
                await reader.read()  # until the client hangs up
            await self._count(hung_up=1)
        else:
            message = {"role": "assistant", "content": block(self.code)}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            body = {
                "id": "1",
                "object": "chat.completion",
                "created": 1,
                "model": "m",
                "choices": choices,
                "usage": usage,
            }
            sent = json.dumps(body).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n")
            writer.write(f"Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
            await writer.drain()
        writer.close()

    async def _count(self, asked: int = 0, hung_up: int = 0) -> None:
        async with self.changed:
            self.asked += asked
            self.hung_up += hung_up
            self.changed.notify_all()

    async def until(self, fact: Callable[[], bool]) -> None:
        """Wait for a fact about the counts."""
        async with asyncio.timeout(SECONDS), self.changed:
            await self.changed.wait_for(fact)


CALLS = {
    "a batch": "llm_query_batched([f'item {i}' for i in range(40)])",
    "a module": "dspy.Predict('item -> answer').map([f'item {i}' for i in range(40)])",
    "a declared sub": "gist.map([f'item {i}' for i in range(40)])",
    "children": "rlm_query_batched([(f'item {i}', 'x') for i in range(4)])",
    "awaited": "import asyncio\nawait asyncio.gather(*(llm_query.acall(f'item {i}') for i in range(4)))",
}


@pytest.mark.parametrize(
    ("calls", "factory"),
    [
        *[
            (calls, factory)
            for calls in ("a batch", "a module", "a declared sub", "children")
            for factory in (LocalPythonInterpreter, PythonInterpreter)
        ],
        # An event loop that is stopped in the middle of its own shutdown complains: only where it has a process.
        ("awaited", PythonInterpreter),
    ],
)
async def test_a_cancelled_run_hangs_up_on_its_sub_calls_and_makes_no_more(factory: Any, calls: str) -> None:
    """Over HTTP: the server sees every connection closed, and the trajectory has what was asked."""
    hanging = HangingServer(CALLS[calls])
    server = await asyncio.start_server(hanging.answer, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    lm = RoleLM("openai/m", api_base=address, api_key="none", cache=False, num_retries=0)
    limits = Limits(max_concurrency=4)
    rlm = RLM("question -> answer", subs={"gist": "item -> text"}, limits=limits, interpreter_factory=factory)
    with dspy.context(lm=lm):
        run = asyncio.create_task(rlm.acall(question="?"))
        await hanging.until(lambda: hanging.asked == 4)
        run.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await run
    await hanging.until(lambda: hanging.hung_up == 4)
    server.close()
    assert hanging.asked == 4
    (step,) = vars(caught.value)["trajectory"]
    assert len(step["calls"]) in (4, 40)
    assert all(call["error"] for call in step["calls"])


@pytest.mark.parametrize("calls", ["a batch", "a module", "a declared sub", "children"])
async def test_a_blocking_run_whose_time_is_over_hangs_up_on_what_it_asked(calls: str) -> None:
    """Sub-calls that are under way, turns of children, and the last reading of the answer."""
    hanging = HangingServer(CALLS[calls])
    server = await asyncio.start_server(hanging.answer, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    lm = RoleLM("openai/m", api_base=address, api_key="none", cache=False, num_retries=0)
    rlm = RLM("question -> answer", subs={"gist": "item -> text"}, limits=Limits(max_seconds=4, max_concurrency=4))
    with dspy.context(lm=lm):
        prediction = await asyncio.to_thread(rlm, question="?")
    assert prediction.usage["limit"] == "max_seconds"
    await hanging.until(lambda: hanging.hung_up == hanging.asked)
    server.close()
    assert hanging.asked >= 4


def cpu_seconds_of_the_next_second() -> float:
    """Return what this process computes meanwhile; what other tests left may be at work for a moment."""
    begun = time.process_time()
    time.sleep(1)
    return time.process_time() - begun


def test_no_item_of_a_call_is_read_when_the_time_is_over() -> None:
    """Reading 100,000 of them would keep the host busy long after the run."""
    code = "call = {'to': {'kind': 'query'}, 'items': [[{}, {}]] * 100_000}\n_rlm_call(call=call)['refused']"
    lm = ScriptedLM(act=[block(code)], extract=["[[ ## x ## ]]\n1"])
    with dspy.context(lm=lm):
        RLM("q -> x", limits=Limits(max_iters=1, max_seconds=2), interpreter_factory=PythonInterpreter)(q="?")
    assert any(cpu_seconds_of_the_next_second() < 0.5 for _ in range(10)), "the items would take minutes"
