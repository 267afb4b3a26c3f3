"""A run and its interpreter: closed, replaced, refused, chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM
from rlm_dspy.interpreters import LocalPythonInterpreter, ScriptedInterpreter, Submission
from rlm_dspy.testing import ScriptedLM
from tests.playing import block, steps_of

if TYPE_CHECKING:
    from tests.playing import Play

DONE = block("SUBMIT(answer='done')")
ASK = "question -> answer"


def test_the_interpreter_is_closed_when_the_run_ends(play: Play) -> None:
    """Also when all goes well."""
    repl = ScriptedInterpreter([Submission({"answer": "x"})])
    play(RLM(ASK, interpreter_factory=lambda: repl), [DONE], question="?")
    assert repl.started
    assert repl.closed


def test_an_interpreter_that_dies_is_replaced_and_the_model_is_told(play: Play) -> None:
    """The inputs are there again; what the code made is lost; the run goes on."""
    dying = ScriptedInterpreter(["before", dspy.CodeInterpreterError("worker gone")])
    spare = [dying, LocalPythonInterpreter()]
    rlm = RLM(ASK, interpreter_factory=lambda: spare.pop(0))
    played = play(rlm, [block("1"), block("2"), block("SUBMIT(answer=question)")], question="still here")
    assert played.kinds == ["output", "interpreter_lost", "submitted"]
    assert "worker gone" in played.outputs[1]
    assert "lost" in played.outputs[1]
    assert played.prediction.answer == "still here"
    assert dying.closed


class LostAtOnce(ScriptedInterpreter):
    """Is lost while the inputs are bound, as a connection may be."""

    def execute(self, code: str, variables: dict[str, Any] | None = None) -> Any:
        raise dspy.CodeInterpreterError("the connection was lost")


def test_an_interpreter_that_is_lost_while_inputs_are_bound_is_replaced_once(play: Play) -> None:
    """Nothing was run and paid, so the model need not be told; the second loss reaches the caller."""
    lost = LostAtOnce([])
    spare = [lost, LocalPythonInterpreter()]
    rlm = RLM(ASK, interpreter_factory=lambda: spare.pop(0))
    played = play(rlm, [block("SUBMIT(answer=question)")], question="here")
    assert (played.kinds, played.prediction.answer) == (["submitted"], "here")
    assert lost.closed
    made: list[LostAtOnce] = []

    def factory() -> LostAtOnce:
        made.append(LostAtOnce([]))
        return made[-1]

    with pytest.raises(dspy.CodeInterpreterError, match="the connection was lost"):
        play(RLM(ASK, interpreter_factory=factory), [DONE], question="?")
    assert [each.closed for each in made] == [True, True]


def test_an_interpreter_that_cannot_be_replaced_reaches_the_caller_with_the_trajectory(play: Play) -> None:
    """Only when no other can be started does the caller see the error."""
    spare = [ScriptedInterpreter(["kept", dspy.CodeInterpreterError("worker gone")])]

    def factory() -> Any:
        if not spare:
            raise dspy.CodeInterpreterError("no more workers")
        return spare.pop()

    with pytest.raises(dspy.CodeInterpreterError, match="no more workers") as caught:
        play(RLM(ASK, interpreter_factory=factory), [block("1"), block("2")], question="?")
    assert [step["code"] for step in steps_of(caught)] == ["1", "2"]


def test_an_interpreter_that_does_not_start_is_closed_and_costs_no_model_call(play: Play) -> None:
    """It fails before anything was paid."""

    class Broken(ScriptedInterpreter):
        def _start(self) -> None:
            raise dspy.CodeInterpreterError("no memory")

    repl, lm = Broken([]), ScriptedLM([DONE])
    with pytest.raises(dspy.CodeInterpreterError, match="no memory") as caught:
        play(RLM(ASK, interpreter_factory=lambda: repl), lm, question="?")
    assert steps_of(caught) == []
    assert repl.closed
    assert lm.script.calls == []


def test_an_input_that_cannot_cross_is_refused_before_a_model_call(play: Play) -> None:
    """An interpreter that takes JSON only says so, naming the input."""
    lm = ScriptedLM([DONE])
    rlm = RLM("data -> answer", interpreter_factory=dspy.LocalInterpreter)
    for value in (object(), print, [object()]):
        with pytest.raises(TypeError, match="'data'"):
            play(rlm, lm, data=value)
    assert lm.script.calls == []


def test_a_factory_that_returns_no_interpreter_is_told_so(play: Play) -> None:
    """The message says what a factory returns."""
    with pytest.raises(TypeError, match="CodeInterpreter"):
        play(RLM(ASK, interpreter_factory=dict), [DONE], question="?")


def test_the_factory_of_the_call_wins_over_that_of_the_module(play: Play) -> None:
    """`interpreter_factory=` at the call is for this call alone."""
    mine, call = ScriptedInterpreter([Submission({"answer": "module"})]), Submission({"answer": "call"})
    rlm = RLM(ASK, interpreter_factory=lambda: mine)
    played = play(rlm, [DONE], question="?", interpreter_factory=lambda: ScriptedInterpreter([call]))
    assert played.prediction.answer == "call"
    assert play(rlm, [DONE], question="?").prediction.answer == "module"


def test_the_environment_says_what_the_interpreter_says_of_itself(play: Play) -> None:
    """A factory's `execution_instructions` reach the model, for the factory of this call."""
    played = play(RLM(ASK), [DONE], question="?")
    assert LocalPythonInterpreter.execution_instructions in played.calls[0][-1]["content"]


def test_what_only_the_interpreter_says_of_itself_and_not_its_factory_is_told_too(play: Play) -> None:
    """A function that makes one, with settings of its own, says nothing; the interpreter does."""
    rlm = RLM(ASK, interpreter_factory=lambda: LocalPythonInterpreter())  # noqa: PLW0108  # a function is the point
    said = play(rlm, [DONE], question="?").calls[0][-1]["content"]
    assert said == play(RLM(ASK), [DONE], question="?").calls[0][-1]["content"]
    assert LocalPythonInterpreter.execution_instructions in said


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("name = input('Which?')", "No user answers input()"),
        ("!ls", "Only Python runs here"),
        ("FINAL(3)", "To end the run, call SUBMIT(answer=...)"),
        ("print(', '.join(llm_query_batched(['a'])))", "A failed item is false and no str"),
    ],
)
def test_habits_are_told_in_the_interpreters_of_dspy_too(code: str, told: str) -> None:
    """There `input` would read what the host sends to the worker, and wait for ever."""
    lm = ScriptedLM(act=[block(code), block("SUBMIT(answer='a')")], query=lambda _: dspy.LMError("it broke"))
    with dspy.context(lm=lm):
        prediction = RLM("question -> answer", interpreter_factory=dspy.LocalInterpreter)(question="?")
    assert (prediction.stop, prediction.trajectory[0]["kind"]) == ("submitted", "error")
    assert told in prediction.trajectory[0]["notice"]


def test_an_input_of_the_name_input_stays_one() -> None:
    lm = ScriptedLM([block("SUBMIT(answer=input)")])
    with dspy.context(lm=lm):
        rlm = RLM("input -> answer", interpreter_factory=dspy.LocalInterpreter)
        assert rlm(input="mine").answer == "mine"
