"""The first message of a run without demos asks for a look at long inputs; one with demos leaves that to them."""

from __future__ import annotations

import dspy

from rlm_dspy import RLM, Limits
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.prompt.adapter import _LOOK_FIRST
from rlm_dspy.testing import ScriptedLM
from tests.playing import block

LONG = "It rained in Ulm.\n" * 1_000


def first_message(rlm: RLM, text: str) -> str:
    """Return the last message of the first request."""
    lm = ScriptedLM([block("SUBMIT(words=len(text.split()))")])
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
        rlm(text=text)
    return str(lm.script.calls[0][-1]["content"])


def test_a_run_over_a_long_input_begins_with_a_look() -> None:
    assert first_message(RLM("text -> words: int", policy=None), LONG).endswith(_LOOK_FIRST)


def test_short_inputs_are_in_the_message_so_no_look_is_asked_for() -> None:
    assert _LOOK_FIRST not in first_message(RLM("text -> words: int", policy=None), "It rained in Ulm.")


def test_a_run_of_one_turn_has_no_turn_for_a_look() -> None:
    assert _LOOK_FIRST not in first_message(
        RLM("text -> words: int", policy=None, limits=Limits(max_iters=1)), LONG
    )


def test_demos_show_how_a_run_begins() -> None:
    rlm = RLM("text -> words: int", policy=None)
    with dspy.context(lm=ScriptedLM([block("SUBMIT(words=4)")]), trace=[]):
        rlm(text="It rained in Ulm.")
        _, inputs, turn = dspy.settings.trace[-1]
    rlm.act.demos = [dspy.Example(**inputs, **turn)]
    assert _LOOK_FIRST not in first_message(rlm, LONG)
