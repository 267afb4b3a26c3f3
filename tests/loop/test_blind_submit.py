"""A SUBMIT before any code looked at an input is refused once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rlm_dspy import RLM, Limits
from rlm_dspy.testing import ScriptedLM
from tests.playing import block

if TYPE_CHECKING:
    from tests.playing import Play

LONG = "The fox jumps. " * 1_000
BLIND = block("SUBMIT(answer='a placeholder')")


def test_a_submit_before_any_code_named_an_input_is_sent_back_once(play: Play) -> None:
    """The second one is taken: a model may know."""
    rlm = RLM("context, question -> answer")
    played = play(rlm, [BLIND, BLIND], context=LONG, question="?")
    assert played.kinds == ["refused", "submitted"]
    assert "shown nothing of context" in played.prediction.trajectory[0]["output"]
    assert played.prediction.answer == "a placeholder"
    assert "For example:\n\n```python\nfor part in find_passages(context, question):" in played.outputs[0]


def test_a_submit_behind_code_that_names_an_input_is_taken(play: Play) -> None:
    """In this turn or an earlier one."""
    rlm = RLM("context, question -> answer")
    here = play(rlm, [block("SUBMIT(answer=context[:7])")], context=LONG, question="?")
    earlier = play(rlm, [block("print(context[:9])"), BLIND], context=LONG, question="?")
    assert (here.kinds, earlier.kinds) == (["submitted"], ["output", "submitted"])


def test_an_input_that_was_shown_whole_needs_no_look(play: Play) -> None:
    played = play(RLM("question -> answer"), [BLIND], question="What is 1 + 1?")
    assert played.kinds == ["submitted"]


@pytest.mark.parametrize(
    "code", ["found = len(context)", "context.nothing()", "for line in context.split('.'): pass"]
)
def test_code_that_showed_nothing_of_an_input_is_no_look_for_a_written_answer(play: Play, code: str) -> None:
    """It printed nothing, or failed."""
    turns = [block(code), BLIND, block("print(context[:9])"), BLIND]
    played = play(RLM("context, question -> answer"), turns, context=LONG, question="?")
    assert played.kinds[1:] == ["refused", "output", "submitted"]


def test_an_answer_that_code_made_of_an_input_needs_no_print(play: Play) -> None:
    turns = [block("found = len(context)"), block("SUBMIT(answer=str(found))")]
    assert play(RLM("context, question -> answer"), turns, context=LONG, question="?").kinds[-1] == "submitted"


def test_code_that_printed_and_then_failed_is_a_look(play: Play) -> None:
    turns = [block("print(context[:9])\n1 / 0"), BLIND]
    assert play(RLM("context, question -> answer"), turns, context=LONG, question="?").kinds == [
        "error",
        "submitted",
    ]


def test_the_last_turn_is_never_refused(play: Play) -> None:
    rlm = RLM("context, question -> answer", limits=Limits(max_iters=1))
    assert play(rlm, [BLIND], context=LONG, question="?").kinds == ["submitted"]


def test_a_module_can_take_every_submit(play: Play) -> None:
    rlm = RLM("context, question -> answer", refuse_blind_submit=False)
    assert play(rlm, [BLIND], context=LONG, question="?").kinds == ["submitted"]


@pytest.mark.parametrize(
    "code",
    [
        "print(context[:9])\nSUBMIT(answer='a guess')",
        "guess = 'a guess'\nprint(context[:9])\nSUBMIT(answer=guess)",
        "print(llm_query('Which animal? ' + context[:9]))\nSUBMIT(answer='a guess')",
    ],
)
def test_an_answer_written_before_its_own_output_was_seen_is_refused_once(play: Play, code: str) -> None:
    lm = ScriptedLM(act=[block(code), block("SUBMIT(answer='The fox')")], query=["a fox"])
    played = play(RLM("context, question -> answer"), lm, context=LONG, question="?")
    assert played.kinds == ["refused", "submitted"]
    assert "before you saw what this code found" in played.outputs[0]
    assert "For example" not in played.outputs[0]


def test_a_look_of_an_earlier_turn_is_behind_a_written_answer_unless_its_own_code_asks_a_model(play: Play) -> None:
    look, asks = block("print(context[:9])"), block("print(llm_query('?'))\nSUBMIT(answer='a guess')")
    lm = ScriptedLM(act=[look, asks, BLIND], query=["a fox"])
    played = play(RLM("context, question -> answer"), lm, context=LONG, question="?")
    assert played.kinds == ["output", "refused", "submitted"]


def test_an_answer_that_a_condition_chooses_is_no_guess(play: Play) -> None:
    code = "if 'fox' in context:\n    SUBMIT(answer='yes')\nelse:\n    SUBMIT(answer='no')"
    played = play(RLM("context, question -> answer"), [block(code)], context=LONG, question="?")
    assert played.kinds == ["submitted"]
