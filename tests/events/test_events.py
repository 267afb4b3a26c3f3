"""What listeners hear of a run, from where, and what it costs a run that they fail."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from typing import TYPE_CHECKING

import dspy
import pytest

from rlm_dspy import RLM, Limits
from rlm_dspy.events import (
    BatchEvent,
    CellEvent,
    Event,
    Listener,
    LMEvent,
    RunEvent,
    StepEvent,
    SubCallEvent,
    ToolEvent,
    TurnEvent,
    emit,
    here,
    unit,
)
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.testing import ScriptedLM
from rlm_dspy.trajectory import Step
from tests.playing import block, fields

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm_dspy.testing import Reply
    from tests.playing import Play

QUESTION = "question -> answer: int"


class Heard(Listener):
    """Keeps the events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_event(self, event: Event) -> None:
        """Keep an event."""
        self.events.append(event)

    def told(self) -> list[str]:
        """Return kind and phase of each."""
        return [f"{type(event).__name__.removesuffix('Event')} {event.phase}" for event in self.events]


@contextlib.contextmanager
def heard() -> Iterator[Heard]:
    """Listen in this scope."""
    listener = Heard()
    with dspy.context(callbacks=[*dspy.settings.callbacks, listener]):
        yield listener


def double(n: int) -> int:
    """Double a number."""
    return 2 * n


ORDER = """
Run started
  Turn started
    LM started
    LM ended
    Cell started
      Tool started
      Tool ended
      Batch started
        SubCall started
          LM started
          LM failed
        SubCall failed
      Batch ended
    Cell ended
  Turn ended
  Turn started
    LM started
    LM ended
    Cell started
    Cell ended
  Turn ended
Run ended
"""


def test_units_are_told_in_order_and_lie_in_one_another(play: Play) -> None:
    """Each start has an end of the same id, and each unit names the one around it."""
    replies: list[Reply] = [
        block("print(double(n=2), llm_query_batched(['a']))"),
        ValueError("no"),
        block("SUBMIT(answer=1)"),
    ]
    with heard() as listener:
        play(RLM(QUESTION, tools=[double]), replies, question="?")
    assert listener.told() == [line.strip() for line in ORDER.strip().split("\n")]
    open_units: list[str] = []
    for event in listener.events:
        if event.phase == "started":
            assert event.parent == (open_units[-1] if open_units else None)
            open_units.append(event.id)
        else:
            assert open_units.pop() == event.id
    assert open_units == []
    root = listener.events[0]
    assert {event.run for event in listener.events} == {root.id}
    turns = [event.turn for event in listener.events if isinstance(event, CellEvent)]
    assert turns == [1, 1, 2, 2]
    times = [event.seconds for event in listener.events]
    assert times == sorted(times)


def test_events_hold_what_a_listener_needs(play: Play) -> None:
    code = block("print(double(n=2), llm_query('a'))", "I look.")
    with heard() as listener:
        prediction = play(RLM(QUESTION, tools=[double]), [code, "yes", block("SUBMIT(answer=1)")], question="?")
    ends = [event for event in listener.events if event.phase != "started"]
    (run,) = [event for event in ends if isinstance(event, RunEvent)]
    (tool,) = [event for event in ends if isinstance(event, ToolEvent)]
    (batch,) = [event for event in ends if isinstance(event, BatchEvent)]
    (subcall,) = [event for event in ends if isinstance(event, SubCallEvent)]
    cell = next(event for event in ends if isinstance(event, CellEvent))
    lms = [event for event in ends if isinstance(event, LMEvent)]
    steps = [event.step.model_dump() for event in ends if isinstance(event, TurnEvent) and event.step]
    assert (run.name, dict(run.inputs), run.outcome.stop) == ("RLM", {"question": "?"}, "submitted")
    assert (run.outcome.outputs, run.outcome.usage.calls) == ({"answer": 1}, 3)
    assert steps == prediction.prediction.trajectory
    assert (tool.name, tool.arguments, tool.result) == ("double", {"n": 2}, 4)
    assert (batch.name, batch.items, batch.answers) == ("llm_query", [{"prompt": "a"}], [{"value": "yes"}])
    assert subcall.call is not None
    assert (subcall.call.number, subcall.call.output, subcall.call.batch) == (1, "yes", 1)
    assert (cell.reasoning, cell.kind, cell.output) == ("I look.", "output", "4 yes")
    assert [(event.number, event.role) for event in lms] == [(1, "act"), (2, "query"), (3, "act")]
    assert all(event.usage.output_tokens > 0 for event in lms)


def test_an_error_fails_the_units_that_it_leaves(play: Play) -> None:
    with heard() as listener, pytest.raises(dspy.LMError):
        play(RLM(QUESTION), [RuntimeError("gone")], question="?")
    assert listener.told()[-3:] == ["LM failed", "Turn failed", "Run failed"]
    run = listener.events[-1]
    assert isinstance(run, RunEvent)
    assert isinstance(run.error, dspy.LMError)
    assert run.outcome.usage.failures == 1


def test_a_run_whose_inputs_do_not_fit_fails_before_its_first_turn(play: Play) -> None:
    with heard() as listener, pytest.raises(ValueError, match="question"):
        play(RLM(QUESTION), [], other="?")
    assert listener.told() == ["Run started", "Run failed"]


class Failing(Listener):
    """Fails on every event."""

    def on_event(self, event: Event) -> None:
        """Fail."""
        raise ValueError("no room")


def test_a_listener_that_fails_is_told_of_once_and_ends_no_run(
    play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("dspy")
    logger.addHandler(caplog.handler)
    try:
        with heard() as listener, dspy.context(callbacks=[Failing(), *dspy.settings.callbacks]):
            assert play(RLM(QUESTION), [block("SUBMIT(answer=1)")], question="?").prediction.answer == 1
    finally:
        logger.removeHandler(caplog.handler)
    assert len([line for line in caplog.messages if "no room" in line]) == 1
    assert listener.told()[-1] == "Run ended"  # others still hear


def test_children_and_the_items_of_a_batch_know_where_they_belong(play: Play) -> None:
    """In the threads of a batch, too."""
    lm = ScriptedLM(
        act=[block("rlm_query_batched(['one', 'two', 'three'])\nSUBMIT(answer=1)")],
        child=lambda _: block("SUBMIT(response='done')"),
    )
    with heard() as listener:
        play(RLM(QUESTION, limits=Limits(max_concurrency=3)), lm, question="?")
    starts = {event.id: event for event in listener.events if event.phase == "started"}
    root, *children = [event for event in starts.values() if isinstance(event, RunEvent)]
    assert len(children) == 3
    assert {(child.parent_run, child.depth, child.turn) for child in children} == {(root.id, 1, None)}
    items = [event for event in starts.values() if isinstance(event, SubCallEvent)]
    (batch,) = [event for event in starts.values() if isinstance(event, BatchEvent)]
    assert {item.parent for item in items} == {batch.id}
    assert {child.subcall for child in children} == {item.id for item in items}
    turns = Counter(event.run for event in starts.values() if isinstance(event, TurnEvent))
    assert turns == {run.id: 1 for run in (root, *children)}


def test_a_run_in_the_threads_of_dspy_inside_a_tool_is_inside_that_tool() -> None:
    """DSPy hands its settings on, not the context of the thread."""
    inner = RLM("n: int -> answer: int", interpreter_factory=LocalPythonInterpreter)

    def ask(n: int) -> int:
        with dspy.context(lm=ScriptedLM(lambda _: block("SUBMIT(answer=n)"))):
            parallel = dspy.Parallel(num_threads=2, disable_progress_bar=True)
            return sum(each.answer for each in parallel([(inner, {"n": n}), (inner, {"n": n})]))

    outer = RLM(QUESTION, tools=[ask], interpreter_factory=LocalPythonInterpreter)
    with heard() as listener, dspy.context(lm=ScriptedLM([block("SUBMIT(answer=ask(2))")])):
        assert outer(question="?").answer == 4
    (tool,) = [event for event in listener.events if isinstance(event, ToolEvent) and event.phase == "started"]
    runs = [event for event in listener.events if isinstance(event, RunEvent) and event.phase == "started"]
    assert [(run.parent, run.depth) for run in runs] == [(None, 0), (tool.id, 1), (tool.id, 1)]


async def test_runs_on_one_event_loop_do_not_mix() -> None:
    rlm = RLM("n: int -> answer: int", interpreter_factory=LocalPythonInterpreter)
    lm = ScriptedLM(lambda _: block("SUBMIT(answer=n)"), seconds=0.01)
    with heard() as listener, dspy.context(lm=lm):
        await asyncio.gather(*(rlm.acall(n=n) for n in range(8)))
    told = Counter((event.run, type(event).__name__, event.phase) for event in listener.events)
    assert set(told.values()) == {1}
    assert len({run for run, *_ in told}) == 8
    assert here() is None


def test_without_a_listener_and_outside_of_runs_nothing_is_told(play: Play) -> None:
    def place() -> bool:
        return here() is None

    assert play(
        RLM("q -> answer: bool", tools=[place]), [block("SUBMIT(answer=place())")], q="?"
    ).prediction.answer
    with heard() as listener:
        with unit(TurnEvent(turn=1)):
            emit(StepEvent(step=Step()))
        with dspy.context(lm=ScriptedLM([fields(answer="1")])):
            dspy.Predict(QUESTION)(question="?")
    assert listener.events == []


# Calls of tools


def test_calls_of_tools_are_in_the_trajectory(play: Play) -> None:
    """With what they were given and gave, short; an error by its type alone, as its text may hold secrets."""

    def find(word: str, *, most: int = 3) -> list[str]:
        """Find."""
        return [word * most]

    def fail(word: str) -> str:
        """Fail."""
        raise LookupError(f"secret {word}")

    code = "find('moon', most=2)\ntry:\n    fail(word='x')\nexcept Exception:\n    pass\nprint(find('y' * 5_000))"
    played = play(RLM(QUESTION, tools=[find, fail]), [block(code), block("SUBMIT(answer=1)")], question="?")
    first, failed, last = played.prediction.trajectory[0]["tool_calls"]
    assert (first["name"], first["arguments"], first["result"]) == ("find", "'moon', most=2", "['moonmoon']")
    assert (failed["name"], failed["result"], failed["error_type"]) == ("fail", "", "LookupError")
    assert "secret" not in str(failed)
    assert len(last["arguments"]) < 500
    assert len(last["result"]) < 1_000
    assert first["started"] <= failed["started"]
    assert played.prediction.trajectory[1]["tool_calls"] == ()


def test_of_very_many_calls_of_tools_the_rest_is_counted(play: Play) -> None:
    code = "for n in range(130):\n    double(n=n)\nSUBMIT(answer=1)"
    played = play(RLM(QUESTION, tools=[double]), [block(code)], question="?")
    (step,) = played.prediction.trajectory
    assert (len(step["tool_calls"]), step["tool_calls_left_out"]) == (100, 30)


def test_async_tools_and_their_calls_are_told(play: Play) -> None:
    async def wait(n: int) -> int:
        """Wait."""
        await asyncio.sleep(0.001)
        return n + 1

    with heard() as listener:
        played = play(RLM(QUESTION, tools=[wait]), [block("SUBMIT(answer=await wait(n=1))")], question="?")
    (call,) = played.prediction.trajectory[0]["tool_calls"]
    assert (call["name"], call["result"]) == ("wait", "2")
    assert listener.told().count("Tool ended") == 1


def test_the_model_is_not_shown_what_is_noted_of_its_tool_calls(play: Play) -> None:
    replies = [block("x = double(n=21)"), block("SUBMIT(answer=1)")]
    played = play(RLM(QUESTION, tools=[double]), replies, question="?")
    assert "tool_calls" not in str(played.calls[1])
    assert "42" not in str(played.calls[1])
