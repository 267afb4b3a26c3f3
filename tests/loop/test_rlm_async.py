"""Many runs at once: on one event loop, in threads, cancelled."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import dspy
import pytest

from rlm_dspy import RLM, Limits
from rlm_dspy.concurrency.port import Awaiting, Blocking, drive
from rlm_dspy.interpreters import LocalPythonInterpreter, ScriptedInterpreter, Submission
from rlm_dspy.testing import ScriptedLM
from tests.interpreters.waiting import comes_true, nothing_executes
from tests.playing import block

SECONDS = 60
"""How long a test waits for what must happen."""
RUNS = 10


def in_this_process(lm: Any) -> Any:
    """Return the settings under which code runs in this process."""
    return dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter)


def answers_by_question(messages: list[dict[str, str]]) -> str:
    """Meet the other runs three times, a turn each, then submit the question."""
    turn = sum(message["role"] == "assistant" for message in messages)
    return block("meet()") if turn < 3 else block("SUBMIT(answer=question)")


async def test_ten_runs_are_in_their_code_at_the_same_time() -> None:
    """Each cell waits until all ten are under way: were even one held up, none would go on."""
    all_here = threading.Barrier(RUNS)

    def meet() -> int:
        """Wait for the cells of the other runs."""
        return all_here.wait(SECONDS)

    rlm = RLM("question -> answer", tools=[meet])
    with in_this_process(ScriptedLM(answers_by_question)):
        predictions = await asyncio.gather(*(rlm.acall(question=f"q{number}") for number in range(RUNS)))
    assert [prediction.answer for prediction in predictions] == [f"q{number}" for number in range(RUNS)]
    assert [len(prediction.trajectory) for prediction in predictions] == [4] * RUNS


async def test_the_model_calls_of_ten_runs_are_under_way_together() -> None:
    """No run waits for the reply to another."""
    together = threading.Barrier(RUNS)
    lm = ScriptedLM(lambda _: block(f"SUBMIT(answer='{together.wait(SECONDS)}')"))
    rlm = RLM("question -> answer")
    with in_this_process(lm):
        await asyncio.gather(*(rlm.acall(question="?") for _ in range(RUNS)))
    assert lm.script.most_at_once == RUNS


async def test_code_that_waits_does_not_hold_up_the_event_loop() -> None:
    """The loop goes on while a cell runs: here it does what the cell waits for."""
    loop_went_on = threading.Event()
    in_code = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait_for_loop() -> bool:
        """Wait until the event loop has run something."""
        loop.call_soon_threadsafe(in_code.set)
        return loop_went_on.wait(SECONDS)

    rlm = RLM("question -> answer: bool", tools=[wait_for_loop])
    with in_this_process(ScriptedLM([block("SUBMIT(answer=wait_for_loop())")])):
        run = asyncio.create_task(rlm.acall(question="?"))
        await in_code.wait()
        loop_went_on.set()
        assert (await run).answer is True


async def test_a_blocking_call_works_inside_a_running_event_loop() -> None:
    """`rlm(...)` in a notebook cell needs no tricks."""
    with in_this_process(ScriptedLM([block("print(1)"), block("SUBMIT(answer='a')")])):
        assert RLM("question -> answer")(question="?").answer == "a"


@pytest.mark.parametrize("factory", [LocalPythonInterpreter, dspy.LocalInterpreter])
async def test_an_async_tool_is_awaited_in_both_ways(factory: Any) -> None:
    """Code calls it like any other function."""

    async def fetch(page: int) -> str:
        """Return a page."""
        await asyncio.sleep(0)
        return f"page {page}"

    rlm = RLM("question -> answer", tools=[fetch], interpreter_factory=factory)
    lm = ScriptedLM([block("SUBMIT(answer=fetch(page=3))")] * 2)
    with dspy.context(lm=lm):
        assert (await rlm.acall(question="?")).answer == "page 3"
        assert (await asyncio.to_thread(rlm, question="?")).answer == "page 3"


def test_batch_runs_one_module_in_many_threads() -> None:
    """Runs share nothing: each answers its own question."""
    rlm = RLM("question -> answer")
    examples = [dspy.Example(question=f"q{number}").with_inputs("question") for number in range(8)]
    code = "mine = question\nSUBMIT(answer=mine)"
    with in_this_process(ScriptedLM(lambda _: block(code))):
        predictions = rlm.batch(examples, num_threads=4, disable_progress_bar=True)
    assert [prediction.answer for prediction in predictions] == [f"q{number}" for number in range(8)]


async def test_each_task_runs_on_the_lm_of_its_own_context() -> None:
    """`dspy.context(lm=...)` around one task is not seen by another, in the loop or in sub-calls."""
    rlm = RLM("question -> answer")

    async def ask(name: str) -> str:
        replies = [block("SUBMIT(answer=llm_query('who?'))"), name]
        with in_this_process(ScriptedLM(replies, seconds=0.02)):
            answer: str = (await rlm.acall(question="?")).answer
            return answer

    assert await asyncio.gather(*(ask(f"lm {n}") for n in range(5))) == [f"lm {n}" for n in range(5)]


class Watched(LocalPythonInterpreter):
    """Notes that it was shut down."""

    def __init__(self, ended: threading.Event) -> None:
        super().__init__()
        self.ended = ended

    def _shutdown(self) -> None:
        super()._shutdown()
        self.ended.set()


async def test_a_cancelled_run_closes_its_interpreter_and_carries_its_steps() -> None:
    """Cancelling does not wait for the code that runs."""
    in_code, let_go, closed = threading.Event(), threading.Event(), threading.Event()

    def hang() -> None:
        """Wait until the test is over."""
        in_code.set()
        let_go.wait(SECONDS)

    rlm = RLM("question -> answer", tools=[hang], interpreter_factory=lambda: Watched(closed))
    with dspy.context(lm=ScriptedLM([block("print('kept')"), block("hang()")])):
        run = asyncio.create_task(rlm.acall(question="?"))
        await asyncio.to_thread(in_code.wait, SECONDS)
        run.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await run
    try:
        assert closed.is_set()
        kept, cut_short = vars(caught.value)["trajectory"]
        assert (kept["output"], cut_short["code"]) == ("kept", "hang()")
    finally:
        let_go.set()


async def test_a_cancelled_run_leaves_no_worker_behind() -> None:
    """The worker dies under the code; no other is started in its place."""
    in_code, made = threading.Event(), []

    def factory() -> dspy.LocalInterpreter:
        made.append(dspy.LocalInterpreter())
        return made[-1]

    def here() -> None:
        """Say that the code runs."""
        in_code.set()

    rlm = RLM("question -> answer", tools=[here], interpreter_factory=factory)
    with dspy.context(lm=ScriptedLM([block("here()\nwhile True: pass")])):
        run = asyncio.create_task(rlm.acall(question="?"))
        await asyncio.to_thread(in_code.wait, SECONDS)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
    assert await asyncio.to_thread(comes_true, nothing_executes)
    assert len(made) == 1
    assert made[0]._process is None


async def test_a_run_that_is_cancelled_while_its_interpreter_starts_closes_it() -> None:
    """The start goes on in its thread, and is undone there."""
    starting, go_on, closed = threading.Event(), threading.Event(), threading.Event()

    def factory() -> Watched:
        starting.set()
        go_on.wait(SECONDS)
        return Watched(closed)

    with dspy.context(lm=ScriptedLM([])):
        run = asyncio.create_task(RLM("question -> answer", interpreter_factory=factory).acall(question="?"))
        await asyncio.to_thread(starting.wait, SECONDS)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
    go_on.set()
    assert await asyncio.to_thread(closed.wait, SECONDS)


async def test_a_timeout_around_a_run_is_enough_to_bound_it() -> None:
    """`asyncio.timeout` ends a run whose model does not answer."""
    rlm = RLM("question -> answer", interpreter_factory=lambda: ScriptedInterpreter([]))
    with dspy.context(lm=ScriptedLM([block("1")], seconds=SECONDS)), pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await rlm.acall(question="?")


# The port


async def test_the_awaiting_port_runs_a_function_in_the_callers_context() -> None:
    """What `dspy.context` set holds in the thread, and the thread is not the loop's."""
    with dspy.context(max_errors=123):
        seen = await Awaiting().run(lambda: (dspy.settings.max_errors, threading.get_ident()))
    assert seen[0] == 123
    assert seen[1] != threading.get_ident()


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3)])
async def test_what_a_function_raises_belongs_to_the_awaiting_task(error: BaseException) -> None:
    """Also what is no Exception."""

    def fail() -> None:
        raise error

    caught = None
    try:
        await Awaiting().run(fail)
    except BaseException as raised:  # noqa: BLE001 (pytest.raises would let an exit through in a task)
        caught = raised
    assert caught is error


def test_drive_gives_the_value_or_the_error_of_a_coroutine_that_never_waits() -> None:
    """It needs no event loop."""

    async def double(port: Blocking, value: int) -> int:
        return 2 * await port.run(int, value)

    assert drive(double(Blocking(), 21)) == 42
    with pytest.raises(ValueError, match="invalid literal"):
        drive(Blocking().run(int, "x"))


def test_drive_refuses_a_coroutine_that_waits() -> None:
    """It is told, not left hanging."""
    with pytest.raises(RuntimeError, match="must not suspend"):
        drive(asyncio.sleep(0))


def test_runs_in_parallel_threads_keep_their_own_ledger() -> None:
    """`max_llm_calls` is per run, also when one module serves many."""
    rlm = RLM("question -> answer", limits=Limits(max_llm_calls=2), interpreter_factory=LocalPythonInterpreter)
    code = "SUBMIT(answer=str(llm_query_batched(['a', 'b'])))"
    lm = ScriptedLM(act=lambda _: block(code), query=lambda _: "yes")
    parallel = dspy.Parallel(num_threads=4, disable_progress_bar=True)
    with dspy.context(lm=lm):
        predictions = parallel([(rlm, {"question": str(n)}) for n in range(6)])
    assert [prediction.answer for prediction in predictions] == ["['yes', 'yes']"] * 6
    assert [prediction.usage["calls"] for prediction in predictions] == [3] * 6


def test_a_final_output_of_any_interpreter_is_an_answer() -> None:
    """`dspy.FinalOutput` and our `Submission` mean the same."""
    outputs = [dspy.FinalOutput({"answer": "a"}), Submission({"answer": "a"}), dspy.FinalOutput("a")]
    scripts = [ScriptedInterpreter([output]) for output in outputs]
    rlm = RLM("question -> answer", interpreter_factory=scripts.pop)
    with dspy.context(lm=ScriptedLM([block("1")] * 3)):
        assert [rlm(question="?").answer for _ in outputs] == ["a"] * 3
