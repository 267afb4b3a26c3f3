"""Feedback and rewards: what is said of a run, to which predictor, and what it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_dspy import RLM, Limits
from rlm_dspy.coverage.tracker import watched
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.optimize import Penalties, trajectory_reward, with_feedback
from rlm_dspy.testing import ScriptedLM
from rlm_dspy.trajectory import Step, SubCall
from tests.optimize.matrix_programs import Two, exact
from tests.playing import block, fields

if TYPE_CHECKING:
    from collections.abc import Iterator

ASK = "question -> answer: int"
GOLD = dspy.Example(question="?", answer=3).with_inputs("question")


@pytest.fixture(autouse=True)
def code_runs_in_this_process() -> Iterator[None]:
    """Run all code of these tests in this process."""
    with dspy.context(interpreter_factory=LocalPythonInterpreter):
        yield


def ran(replies: list[Any], program: Any = None, **inputs: Any) -> tuple[Any, list[Any]]:
    """Return the prediction and the trace of a run on scripted replies."""
    with dspy.context(lm=ScriptedLM(replies), trace=[]):
        prediction = (program or RLM(ASK))(**(inputs or {"question": "?"}))
        return prediction, list(dspy.settings.trace)


def said(replies: list[Any], name: str | None = "act", program: Any = None) -> str:
    """Return the feedback on a run."""
    prediction, trace = ran(replies, program)
    judged = with_feedback(exact)(GOLD, prediction, trace, name)
    return str(judged.feedback)


def test_the_score_is_the_metrics_with_and_without_a_predictors_name() -> None:
    """GEPA wants the same of both."""
    prediction, trace = ran([block("SUBMIT(answer=3)")])
    metric = with_feedback(exact)
    assert metric(GOLD, prediction).score == metric(GOLD, prediction, trace, "act").score == 1.0


def test_what_went_wrong_first_comes_with_the_last_line_of_its_error() -> None:
    """Then how often each kind of failure came."""
    feedback = said([block("1 / 0"), "No code.", block("x = nothing"), block("SUBMIT(answer=3)")])
    assert "The first thing that went wrong: in turn 1 its code failed: ZeroDivisionError" in feedback
    assert "Failed turns: 3 of 4 (2 x error, 1 x no_code)." in feedback


def test_a_refused_submit_is_told_with_its_reason() -> None:
    """Field by field."""
    feedback = said([block("SUBMIT(answer='three')"), block("SUBMIT(answer=3)")])
    assert "in turn 1 its SUBMIT was refused: answer: expected int, got str 'three'" in feedback


def test_a_wrong_answer_is_told_with_the_right_one() -> None:
    """As the dataset has it; of a right answer nothing is said."""
    assert "Expected: answer is 3, the program gave 4." in said([block("SUBMIT(answer=4)")])
    assert "Expected" not in said([block("SUBMIT(answer=3)")])


def test_an_answer_that_was_not_submitted_is_told() -> None:
    """Extracted, or none at all."""
    short = RLM(ASK, max_iters=1)
    assert "never called SUBMIT" in said([block("1"), fields(answer="3")], program=short)
    assert "without an answer" in said([block("1"), "nothing"] + ["nothing"] * 3, program=short)


def test_the_limit_that_was_hit_is_named() -> None:
    """As `usage["limit"]` has it."""
    prediction, _ = ran([block("SUBMIT(answer=3)")])
    prediction.usage["limit"] = "max_cost"
    assert "limit max_cost" in with_feedback(exact)(GOLD, prediction, None, "act").feedback


def test_the_turn_that_is_looked_at_is_told_apart() -> None:
    """GEPA shows one turn of many: the feedback says which, and what became of it."""
    prediction, trace = ran([block("1 / 0"), block("SUBMIT(answer=3)")])
    metric = with_feedback(exact)
    first, last = (metric(GOLD, prediction, trace, "act", [call]).feedback for call in trace)
    assert "The turn shown here is number 1 of 2: its code failed: ZeroDivisionError" in first
    assert "The turn shown here is number 2 of 2: it called SUBMIT, and no turn followed." in last


def with_calls(*calls: SubCall) -> dspy.Prediction:
    """Return the prediction of a run that made sub-calls."""
    steps = [Step(code="c", calls=calls), Step(code="SUBMIT(answer=3)", kind="submitted")]
    return dspy.Prediction(answer=3, trajectory=[step.model_dump() for step in steps], stop="submitted", usage={})


def test_failed_and_repeated_sub_calls_are_told_to_their_predictor() -> None:
    """By the name of the sub; `act` hears of the failed ones too."""
    failed = SubCall(name="claims", kind="sub", inputs={"passage": "b"}, error="ValueError: bad\nTypeError: worse")
    same = SubCall(name="claims", kind="sub", inputs={"passage": "a"}, output="x")
    other = SubCall(name="query", kind="query", inputs={"prompt": "p"}, output="y")
    prediction = with_calls(same, same, failed, other)
    metric = with_feedback(exact)
    feedback = metric(GOLD, prediction, None, "subs.claims").feedback
    assert "1 of 3 calls failed, first with: TypeError: worse" in feedback
    assert "1 of 3 calls asked what had been asked before." in feedback
    assert "failed" not in metric(GOLD, prediction, None, "query").feedback
    assert "A sub-call to claims failed: TypeError: worse" in metric(GOLD, prediction, None, "act").feedback


def test_of_a_larger_program_each_rlm_hears_of_its_own_runs() -> None:
    """Its prediction holds no trajectory: the trace does."""
    replies = [block("1 / 0"), block("SUBMIT(fact='f')"), block("SUBMIT(answer='y')"), fields(answer="yes")]
    prediction, trace = ran(replies, Two(), context="c", question="?")
    metric = with_feedback(exact)
    gold = dspy.Example(context="c", question="?", answer="yes").with_inputs("context", "question")
    find, read = (metric(gold, prediction, trace, n, [trace[at]]) for n, at in [("find.act", 0), ("read.act", 2)])
    assert "ZeroDivisionError" in find.feedback
    assert "ZeroDivisionError" not in read.feedback
    assert "It took 2 turns." in find.feedback
    assert "It took 1 turn." in read.feedback


class Passes(dspy.Module):
    """Returns what its second RLM, or its first one, returned."""

    def __init__(self, *, first: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.first = RLM("question -> p"), RLM("p -> answer: int"), first

    def forward(self, question: str) -> Any:
        """Pass on what an RLM returned."""
        first = self.a(question=question)
        second = self.b(p=first.p)
        return first if self.first else second


A_FAILS = [block("1 / 0"), block("llm_query('x'); llm_query('y'); SUBMIT(p='p')"), "x", "y"]
B_FAILS = [block("missing"), block("print(2)"), block("SUBMIT(answer=3)")]


@pytest.mark.parametrize("first", [False, True], ids=["the second", "the first"])
def test_of_a_program_that_returns_an_rlms_prediction_each_rlm_hears_of_its_own_runs(first: bool) -> None:
    """Its trajectory is that of one of them; the trace has those of the others."""
    prediction, trace = ran([*A_FAILS, *B_FAILS], Passes(first=first))
    prediction.stop, prediction.usage["limit"] = "extracted", "max_cost"
    metric = with_feedback(exact, coverage=lambda *_: "Unread.")
    at = {"a.act": 0, "a.query": 2, "b.act": 4}
    a, query, b = (metric(GOLD, prediction, trace, name, [trace[n]]).feedback for name, n in at.items())
    assert "in turn 1 its code failed: ZeroDivisionError" in a
    assert "It took 2 turns." in a
    assert "in turn 1 its code failed: NameError" in b
    assert "It took 3 turns." in b
    assert "It was called 2 times in this run." in query
    returned, other = (a, b) if first else (b, a)
    for said in ("never called SUBMIT", "limit max_cost", "Unread."):
        assert said in returned
        assert said not in other


def test_a_reward_counts_the_turns_of_every_rlm_of_a_program() -> None:
    """Also if the program returns the prediction of its last one."""
    prediction, trace = ran([*A_FAILS, *B_FAILS], Passes())
    assert trajectory_reward(exact)(GOLD, prediction, trace) == pytest.approx(1 - 2 * Penalties().failed_turn)


def test_a_metrics_own_feedback_and_what_was_not_read_are_kept() -> None:
    """The metric's words first."""
    prediction, _ = ran([block("SUBMIT(answer=4)")])

    def judged(*_: Any) -> Any:
        return dspy.Prediction(score=0.5, feedback="Close.")

    metric = with_feedback(judged, coverage=lambda example, prediction: "90 % was never read.")
    feedback = metric(GOLD, prediction, None, "act").feedback
    assert feedback.startswith("Close.")
    assert feedback.endswith("90 % was never read.")


def test_what_was_never_read_is_told_of_watched_runs() -> None:
    """By code, in outputs, or by sub-calls; outside of `watched()` nothing is known and nothing said."""
    gold = dspy.Example(text="ab" * 500, answer=3).with_inputs("text")
    rlm, replies = RLM("text -> answer: int"), [block("print(text[:100])"), block("SUBMIT(answer=4)")]
    metric = with_feedback(exact)
    with watched():
        watching, _ = ran(list(replies), rlm, text=gold.text)
    assert "90% of text was never read." in metric(gold, watching, None, "act").feedback
    blind, _ = ran(list(replies), rlm, text=gold.text)
    assert "never read" not in metric(gold, blind, None, "act").feedback


def test_feedback_is_short() -> None:
    """However long an error is."""
    replies = [block("raise ValueError('x' * 100_000)"), block("SUBMIT(answer='y' * 90_000)"), "", "", ""]
    prediction, trace = ran([*replies, block("SUBMIT(answer=4)")])
    assert len(with_feedback(exact, max_chars=700)(GOLD, prediction, trace, "act").feedback) <= 700


def test_a_clean_run_keeps_its_score_and_a_bad_one_loses_a_little() -> None:
    """Of two right runs the cleaner one wins; a wrong one stays at 0."""
    reward = trajectory_reward(exact)
    clean, failed, wrong = (
        ran([*replies])[0]
        for replies in (
            [block("SUBMIT(answer=3)")],
            [block("1 / 0"), block("SUBMIT(answer=3)")],
            [block("SUBMIT(answer=4)")],
        )
    )
    assert [reward(GOLD, prediction) for prediction in (clean, failed, wrong)] == [1.0, 0.98, 0.0]


def test_every_penalty_is_taken() -> None:
    """Failed and repeated calls, an answer that was extracted, a limit."""
    call = SubCall(name="query", kind="query", inputs={"prompt": "p"}, output="y")
    prediction = with_calls(call, call, call.model_copy(update={"error": "E", "inputs": {"prompt": "q"}}))
    prediction.stop, prediction.usage = "extracted", {"limit": "max_seconds"}
    rates = Penalties(failed_call=0.01, repeated_call=0.02, no_submit=0.03, limit=0.04, most=1.0)
    assert trajectory_reward(exact, rates)(GOLD, prediction) == pytest.approx(1 - 0.1)


@given(
    kinds=st.lists(st.sampled_from(["output", "error", "refused", "no_code"]), max_size=40),
    stop=st.sampled_from(["submitted", "extracted", "unanswered"]),
    limit=st.sampled_from([None, "max_iters"]),
)
def test_a_right_answer_by_any_run_beats_a_wrong_one(kinds: list[Any], stop: str, limit: str | None) -> None:
    """All penalties together are capped."""
    trajectory = [Step(code="c", kind=kind).model_dump() for kind in kinds]
    prediction = dspy.Prediction(answer=3, trajectory=trajectory, stop=stop, usage={"limit": limit})
    assert 0.8 <= trajectory_reward(exact)(GOLD, prediction) <= 1.0


def test_a_metric_that_returns_no_number_is_told_so() -> None:
    """The message names what to return."""
    prediction, _ = ran([block("SUBMIT(answer=3)")], RLM(ASK, limits=Limits(max_iters=1)))
    with pytest.raises(TypeError, match="return a bool, a number"):
        with_feedback(lambda *_: "good")(GOLD, prediction)
