"""How a run ends: out of turns, out of window, by an error. Each fact holds blocking and awaiting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dspy
import pytest

from rlm_dspy import RLM
from rlm_dspy.interpreters import ScriptedInterpreter
from tests.playing import block, fields, steps_of

if TYPE_CHECKING:
    from tests.playing import Play

DONE = block("SUBMIT(answer='done')")
ASK = "question -> answer"


def test_the_last_turns_are_counted_down(play: Play) -> None:
    """Three and two turns before the end the model reads how many are left; on the last, that it is the last."""
    played = play(RLM(ASK, max_iters=5), [*(block(str(n)) for n in range(4)), DONE], question="?")
    last_messages = [messages[-1]["content"] for messages in played.calls]
    assert "turns are left" not in last_messages[1]
    assert "3 turns are left" in last_messages[2]
    assert "2 turns are left" in last_messages[3]
    assert "This is the last turn" in last_messages[4]
    assert "SUBMIT now" in last_messages[4]


def test_a_run_of_one_turn_is_told_that_it_is_the_last(play: Play) -> None:
    """With `max_iters=1` there is no turn before it, so the first message says it."""
    played = play(RLM(ASK, max_iters=1), [DONE], question="?")
    assert "the last turn" in played.calls[0][-1]["content"]


def test_a_run_out_of_turns_reads_the_answer_from_the_trajectory(play: Play) -> None:
    """`stop` says that it was extracted; the value is typed; every step is kept."""
    replies = [block("print('population 1200')"), block("1"), fields(answer="1200")]
    played = play(RLM("question -> answer: int", max_iters=2), replies, question="?")
    assert (played.prediction.answer, played.prediction.stop) == (1200, "extracted")
    assert played.kinds == ["output", "output"]
    assert "population 1200" in str(played.calls[2])
    assert played.prediction.usage["by_role"]["extract"]["calls"] == 1


def test_an_output_named_session_is_extracted_from_the_session(play: Play) -> None:
    """No name of an output hides the transcript from the extraction."""
    played = play(
        RLM("question -> session", max_iters=1), [block("print('seen')"), fields(session="s")], question="?"
    )
    assert played.prediction.session == "s"
    assert "seen" in str(played.calls[1])


def test_an_answer_that_cannot_be_extracted_leaves_the_trajectory(play: Play) -> None:
    """`stop` is "unanswered", the outputs are None, and nothing is raised."""
    replies = [block("print('half the work')"), *["no fields at all"] * 3]
    played = play(RLM("question -> answer: int, why: str", max_iters=1), replies, question="?")
    assert played.prediction.stop == "unanswered"
    assert (played.prediction.answer, played.prediction.why) == (None, None)
    assert played.outputs == ["half the work"]


def test_a_full_context_window_ends_in_extraction(play: Play) -> None:
    """A limit of the model never throws a trajectory away."""
    too_long = dspy.lm15.ContextLengthError("too long")
    replies = [block("print('seen')"), too_long, fields(summary="We saw it."), too_long, fields(answer="seen")]
    played = play(RLM(ASK), replies, question="?")
    assert (played.prediction.answer, played.prediction.stop) == ("seen", "extracted")


def test_a_context_window_that_the_first_message_fills_reaches_the_caller(play: Play) -> None:
    """With no step taken there is nothing to extract from."""
    with pytest.raises(dspy.ContextWindowExceededError):
        play(RLM(ASK), [dspy.lm15.ContextLengthError("too long")], question="?")


def test_an_error_of_the_lm_carries_the_trajectory(play: Play) -> None:
    """What reaches the caller has the steps that were taken, and a note that says so."""
    with pytest.raises(dspy.LMError) as caught:
        play(RLM(ASK), [block("print('paid for')"), dspy.LMRateLimitError("slow down")], question="?")
    assert [step["output"] for step in steps_of(caught)] == ["paid for"]
    assert "1 step(s)" in caught.value.__notes__[0]


def test_an_interrupt_carries_the_trajectory_and_closes_the_interpreter(play: Play) -> None:
    """Ctrl-C loses neither the steps, the one that it cut short included, nor the interpreter."""
    repl = ScriptedInterpreter(["kept", KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt) as caught:
        play(RLM(ASK, interpreter_factory=lambda: repl), [block("1"), block("2")], question="?")
    assert [step["code"] for step in steps_of(caught)] == ["1", "2"]
    assert "interrupted" in steps_of(caught)[1]["output"]
    assert repl.closed
