"""A SUBMIT before any code named an input, in a module that sends it back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlm_dspy import RLM
from tests.playing import block

if TYPE_CHECKING:
    from tests.playing import Play

LONG = "The fox jumps. " * 1_000
BLIND = block("SUBMIT(answer='a placeholder')")


def test_a_submit_before_any_code_named_an_input_is_sent_back_once(play: Play) -> None:
    """The second one is taken: a model may know."""
    rlm = RLM("context, question -> answer", refuse_blind_submit=True)
    played = play(rlm, [BLIND, BLIND], context=LONG, question="?")
    assert played.kinds == ["refused", "submitted"]
    assert "looked at context" in played.prediction.trajectory[0]["output"]
    assert played.prediction.answer == "a placeholder"


def test_a_submit_behind_code_that_names_an_input_is_taken(play: Play) -> None:
    """In this turn or an earlier one."""
    rlm = RLM("context, question -> answer", refuse_blind_submit=True)
    here = play(rlm, [block("SUBMIT(answer=context[:7])")], context=LONG, question="?")
    earlier = play(rlm, [block("print(context[:9])"), BLIND], context=LONG, question="?")
    assert (here.kinds, earlier.kinds) == (["submitted"], ["output", "submitted"])


def test_an_input_that_was_shown_whole_needs_no_look(play: Play) -> None:
    played = play(RLM("question -> answer", refuse_blind_submit=True), [BLIND], question="What is 1 + 1?")
    assert played.kinds == ["submitted"]


def test_by_default_every_submit_is_taken(play: Play) -> None:
    played = play(RLM("context, question -> answer"), [BLIND], context=LONG, question="?")
    assert played.kinds == ["submitted"]
