"""What is waited for elsewhere ends when nobody waits for it any more, whoever ends it and whenever."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import sys
import threading
import time

import dspy
import pytest

from rlm_dspy import RLM
from rlm_dspy.concurrency import event_loops
from rlm_dspy.concurrency.event_loops import LoopCall, background_loop
from rlm_dspy.concurrency.timeouts import call_with_timeout
from rlm_dspy.concurrency.wait_scope import (
    Cancellation,
    abandoned,
    awaited_on,
    blocking,
    cancelled_by,
    pause,
    wait_scope,
)
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.testing import ScriptedLM
from tests.calling import SECONDS
from tests.playing import block


class Work:
    """An awaitable that never returns, and notes what becomes of it."""

    def __init__(self) -> None:
        self.begun, self.ended = threading.Event(), threading.Event()

    async def __call__(self) -> None:
        """Wait for ever."""
        self.begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            self.ended.set()


def test_a_cancelled_call_raises_why_and_its_task_ends() -> None:
    """Cancelled by another thread while this one waits."""
    work, run = Work(), Cancellation[ValueError]()

    def cancel() -> None:
        work.begun.wait(SECONDS)
        run.cancel(ValueError("over"))

    threading.Thread(target=cancel).start()
    with cancelled_by(run), pytest.raises(ValueError, match="over"):
        LoopCall(work()).result()
    assert work.ended.wait(SECONDS)


def test_a_call_in_a_cancelled_scope_never_begins() -> None:
    """Its coroutine is closed, so that nobody is warned that it was not awaited."""
    work, run = Work(), Cancellation[ValueError]()
    run.cancel(ValueError("over"))
    with cancelled_by(run), pytest.raises(ValueError, match="over"):
        LoopCall(work()).result()
    assert not work.begun.is_set()


def test_a_cancellation_that_is_taken_back_ends_no_later_call() -> None:
    """The last turn of a run whose code was out of time goes on."""
    run = Cancellation[ValueError]()
    run.cancel(ValueError("over"))
    run.take_back()
    with cancelled_by(run):
        assert not abandoned()
        assert LoopCall(asyncio.sleep(0, "done")).result() == "done"


def test_an_inner_scope_ends_with_the_outer() -> None:
    """A child's code with its parent's; the inner one alone does not end the outer."""
    outer, inner = Cancellation[ValueError](), Cancellation[ValueError]()
    with cancelled_by(outer):
        with cancelled_by(inner):
            inner.cancel(ValueError("inner"))
            assert abandoned()
        assert not abandoned()
        with cancelled_by(Cancellation[ValueError]()):
            outer.cancel(ValueError("outer"))
            with pytest.raises(ValueError, match="outer"):
                LoopCall(asyncio.sleep(3600)).result()


def test_a_call_that_is_late_is_cancelled() -> None:
    """And the waiting thread is told so."""
    work = Work()
    with pytest.raises(TimeoutError, match=r"within 0\.05 seconds"):
        LoopCall(work()).result(seconds=0.05)
    assert work.ended.wait(SECONDS)


def _is_in(thread: int, function: str) -> bool:
    """Whether a thread is inside a function of this name."""
    frame = sys._current_frames().get(thread)  # documented, for debuggers
    while frame is not None and frame.f_code.co_name != function:
        frame = frame.f_back
    return frame is not None


def test_ctrl_c_cancels_the_call_that_the_main_thread_waits_for() -> None:
    """Its request is closed, as that of a call in this thread would be."""
    work = Work()
    found = signal.signal(signal.SIGINT, signal.default_int_handler)  # under nohup it is ignored

    def interrupt() -> None:
        work.begun.wait(SECONDS)
        main = threading.main_thread().ident or 0
        while not _is_in(main, "result"):
            time.sleep(0.01)
        signal.pthread_kill(main, signal.SIGINT)  # interrupt_main() would not wake a thread that waits for a lock

    threading.Thread(target=interrupt).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            LoopCall(work()).result(seconds=SECONDS)
    finally:
        signal.signal(signal.SIGINT, found)
    assert work.ended.wait(SECONDS)


def test_a_time_out_that_the_call_itself_raises_is_its_own() -> None:
    """It is no end of the time that it was given."""

    async def fail() -> None:
        raise TimeoutError("of the server")

    with pytest.raises(TimeoutError, match="of the server"):
        LoopCall(fail()).result(seconds=SECONDS)


def test_a_pause_in_an_abandoned_thread_ends_at_once() -> None:
    """So does the thread: an LM that is slow to repeat a request holds nothing."""
    begun, left = time.monotonic(), threading.Event()

    def wait() -> None:
        pause(3600)
        assert abandoned()
        left.set()

    with pytest.raises(TimeoutError):
        call_with_timeout(wait, 0.05)
    assert left.wait(SECONDS)
    assert time.monotonic() - begun < SECONDS


async def test_a_blocked_event_loop_is_not_the_one_to_await_on() -> None:
    """It is while it is only waiting for a thread."""
    here = asyncio.get_running_loop()
    with awaited_on(here):
        assert wait_scope().free_loop is here
        with blocking():
            assert wait_scope().free_loop is None
            assert LoopCall(asyncio.sleep(0, "elsewhere")).result() == "elsewhere"


def use_a_background_loop(answers: multiprocessing.SimpleQueue[str]) -> None:
    """Do it in a forked process."""
    answers.put(LoopCall(asyncio.sleep(0, "in the child")).result(background_loop("rlm-tools")))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_background_loops_of_its_own() -> None:
    """Those of its parent have no thread there."""
    assert LoopCall(asyncio.sleep(0, "in the parent")).result(background_loop("rlm-tools")) == "in the parent"
    fork = multiprocessing.get_context("fork")
    answers = fork.SimpleQueue()
    child = fork.Process(target=use_a_background_loop, args=(answers,))
    child.start()
    child.join(SECONDS)
    assert answers.get() == "in the child"


async def test_a_factory_that_has_no_more_interpreters_ends_an_awaited_run_too() -> None:
    """No future of asyncio takes a `StopIteration`: the run waited for ever."""
    made = iter([LocalPythonInterpreter()])
    rlm = RLM("question -> answer", interpreter_factory=lambda: next(made))
    with dspy.context(lm=ScriptedLM([block("SUBMIT(answer='a')")])):
        assert (await rlm.acall(question="?")).answer == "a"
        with pytest.raises(RuntimeError, match="StopIteration"):
            await asyncio.wait_for(rlm.acall(question="?"), SECONDS)
        with pytest.raises(RuntimeError, match="StopIteration"):
            rlm(question="?")


def test_a_call_that_a_slow_loop_begins_late_has_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another loop was asked meanwhile: it finds the call taken, and cancels nothing."""
    first, second = threading.Event(), threading.Event()
    find_loop = event_loops.background_loop

    def loop_of(name: str, number: int = 0) -> event_loops.BackgroundLoop:
        if number == 1:
            threading.Timer(0.2, first.set).start()  # when the call was handed to the second loop too
        return find_loop(name, number)

    async def work() -> int:
        second.set()
        await asyncio.sleep(0.3)
        return 7

    monkeypatch.setattr(event_loops, "background_loop", loop_of)
    for number, free in enumerate((first, second)):
        find_loop("rlm-tools", number).call_soon_threadsafe(free.wait, SECONDS)
    assert LoopCall(work()).result(seconds=SECONDS) == 7
