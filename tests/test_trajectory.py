"""What a step tells of itself, so that nothing has to be read out of its output."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import pytest

from rlm_dspy import RLM
from rlm_dspy.trajectory import KINDS, Step, StepKind, Trajectory
from tests.playing import block

if TYPE_CHECKING:
    from tests.playing import Play


def test_every_kind_of_step_has_a_label_and_says_whether_it_failed() -> None:
    """Five kinds leave something to mend for the next turn."""
    assert KINDS.keys() == set(get_args(StepKind))
    failed = {kind for kind in KINDS if Step(kind=kind).failed}
    assert failed == {"error", "refused", "denied", "no_code", "interpreter_lost"}


@pytest.mark.parametrize("printed", ["", "found it", "SUBMIT: {'answer': 1}\n- no reason"])
def test_a_step_tells_apart_what_the_code_printed_and_why_submit_was_refused(play: Play, printed: str) -> None:
    """Whatever the code prints, be it the words of a refusal or of an echo."""
    code = f"print({printed!r}, end='')\nSUBMIT(answer='three', sure='maybe')"
    right = f"print({printed!r}, end='')\nSUBMIT(answer=3, sure=True)"
    prediction = play(RLM("q -> answer: int, sure: bool"), [block(code), block(right)], q="?").prediction
    refused, submitted = (Step.model_validate(step) for step in prediction.trajectory)
    assert (refused.kind, submitted.kind) == ("refused", "submitted")
    assert refused.printed == submitted.printed == printed
    assert [reason.partition(":")[0] for reason in refused.refusals] == ["answer", "sure"]
    assert submitted.refusals == ()
    assert all(f"- {reason}" in refused.output for reason in refused.refusals)


def test_the_problem_of_a_step_is_its_refusals_or_the_last_line_of_its_output() -> None:
    """In one line."""
    assert Step(kind="refused", output="...", refusals=("a: bad", "b: worse")).problem == "a: bad; b: worse"
    assert Step(kind="error", output="Traceback\n  line\nValueError: no\n\n").problem == "ValueError: no"
    assert Step(kind="error").problem == ""


def test_the_model_is_shown_no_more_of_a_step_than_it_needs() -> None:
    """What was printed before SUBMIT stands in the output, where it is shown once."""
    step = Step(reasoning="r", code="c", output="o", kind="refused", refusals=("x",), printed="o", thinking="t")
    (shown,) = Trajectory().add(step).steps
    assert shown == Step(reasoning="r", code="c", output="o", kind="refused", refusals=("x",))
