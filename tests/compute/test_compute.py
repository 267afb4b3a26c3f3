"""One plain call for short inputs, votes, a cheap model first: what each costs, and when it falls back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM, Limits, Text
from rlm_dspy.compute import Compute
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.report.record import recorded
from rlm_dspy.testing import ScriptedLM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm_dspy.report.representation import RunPrediction

TEXT = "Ovid Systems was founded in 2019 by Kadri Vaheste of Tartu.\n"
DIRECT = "[[ ## answer ## ]]\n{}\n\n[[ ## completed ## ]]"


@pytest.fixture(autouse=True)
def _interpreter() -> Iterator[None]:
    with dspy.context(interpreter_factory=LocalPythonInterpreter):
        yield


def submit(value: object, before: str = "") -> str:
    return f"```python\n{before}\nSUBMIT(answer={value!r})\n```"


def run(lm: ScriptedLM, signature: str = "context -> answer: str", **options: Any) -> RunPrediction:
    context = options.pop("context", TEXT)
    with dspy.context(lm=lm):
        return RLM(signature, **options)(context=context)


def test_a_short_input_is_answered_by_one_call() -> None:
    lm = ScriptedLM([DIRECT.format("Kadri Vaheste")])
    prediction = run(lm, compute=Compute(direct_below=100))
    assert (prediction.answer, prediction.stop, prediction.trajectory) == ("Kadri Vaheste", "direct", [])
    assert list(prediction.usage["by_role"]) == lm.script.roles == ["direct"]
    (place,) = prediction.sources["answer"]
    assert TEXT[place.start : place.end] == "Kadri Vaheste"
    assert "one plain call" in prediction.report().html


def test_an_awaited_run_is_answered_by_one_call_too() -> None:
    async def answer() -> dspy.Prediction:
        with dspy.context(lm=ScriptedLM([DIRECT.format("Kadri")])):
            return await RLM("context -> answer: str", compute=Compute(direct_below=100)).acall(context=TEXT)

    assert asyncio.run(answer()).stop == "direct"


@pytest.mark.parametrize(
    "options",
    [
        {"compute": Compute(direct_below=10)},
        {"compute": Compute()},
        {"compute": Compute(direct_below=100), "tools": [len]},
        {"compute": Compute(direct_below=100), "subs": {"gist": "text -> gist"}},
    ],
)
def test_a_run_is_made_if_a_plain_call_does_not_fit_the_task(options: dict[str, Any]) -> None:
    prediction = run(ScriptedLM(act=[submit("Kadri")]), **options)
    assert (prediction.answer, prediction.stop) == ("Kadri", "submitted")


TOO_LONG = dspy.ContextWindowExceededError(message="too long")


@pytest.mark.parametrize("reply", ["", DIRECT.format("many"), TOO_LONG])
def test_a_reply_that_does_not_fit_leads_to_a_run(reply: Any) -> None:
    lm = ScriptedLM(lambda _: reply, act=[submit(7)])
    if isinstance(reply, Exception):
        lm = ScriptedLM([reply], act=[submit(7)])
    prediction = run(lm, "context -> answer: int", compute=Compute(direct_below=100))
    assert (prediction.answer, prediction.stop) == (7, "submitted")
    assert "direct" in prediction.usage["by_role"]


def test_a_plain_call_is_bounded_by_the_limits() -> None:
    limits = Limits(max_input_tokens=2_000)
    lm = ScriptedLM([DIRECT.format("Kadri")], act=[submit("Kadri")])
    prediction = run(lm, compute=Compute(direct_below=10_000), limits=limits, context=TEXT * 300)
    assert prediction.usage["input_tokens"] <= 2_000


def test_a_text_is_shown_whole_to_a_plain_call() -> None:
    lm = ScriptedLM([DIRECT.format("Kadri")])
    assert run(lm, context=Text(TEXT), compute=Compute(direct_below=100)).stop == "direct"
    assert TEXT.strip() in str(lm.script.calls[0])


def test_texts_in_a_list_are_shown_whole_to_a_plain_call() -> None:
    """As files are, which a caller passes as a list of paths."""
    lm = ScriptedLM([DIRECT.format("Kadri")])
    assert run(lm, context=[Text(TEXT)], compute=Compute(direct_below=100)).stop == "direct"
    assert TEXT.strip() in str(lm.script.calls[0])


def test_the_answer_of_most_runs_is_taken() -> None:
    lm = ScriptedLM([submit("Kadri"), submit("Piret"), submit("piret ")])
    prediction = run(lm, compute=Compute(votes=3))
    assert prediction.answer == "Piret"
    assert prediction.agreement == {
        "runs": 3,
        "agreeing": 2,
        "answers": [{"answer": "Kadri"}, {"answer": "Piret"}, {"answer": "piret "}],
        "stops": ["submitted"] * 3,
    }
    assert prediction.usage["calls"] == prediction.usage["by_role"]["act"]["calls"] == 3


def test_no_vote_is_made_that_cannot_change_the_answer() -> None:
    prediction = run(ScriptedLM([submit("Kadri"), submit("Kadri")]), compute=Compute(votes=3))
    assert prediction.agreement["runs"] == prediction.agreement["agreeing"] == 2


def test_the_trace_has_the_calls_of_the_run_that_won() -> None:
    """By the predictors of the module: a demo of another run would teach a wrong answer."""
    rlm = RLM("context -> answer: str", compute=Compute(votes=3))
    lm = ScriptedLM([submit("Kadri"), submit("Piret"), submit("Piret")])
    with dspy.context(lm=lm, trace=[]):
        assert rlm(context=TEXT).answer == "Piret"
        ((predictor, _, outputs),) = dspy.settings.trace
    assert predictor is rlm.act
    assert "Piret" in outputs.code


def test_the_trace_of_a_vote_that_fails_has_its_calls() -> None:
    rlm = RLM("context -> answer: str", compute=Compute(votes=3))
    with dspy.context(lm=ScriptedLM(["```python\nprint(1)\n```", RuntimeError("gone")]), trace=[]):
        with pytest.raises(dspy.LMError):
            rlm(context=TEXT)
        assert [predictor for predictor, _, _ in dspy.settings.trace] == [rlm.act]


def test_without_votes_nothing_is_said_of_agreement() -> None:
    assert "agreement" not in run(ScriptedLM([submit("Kadri")]))


@pytest.mark.parametrize(
    ("replies", "runs"),
    [
        ([submit(["Kadri Vaheste"])], 1),
        ([submit(["Piret Kask"])] * 2, 2),
        ([submit(3), submit(["Kadri Vaheste"]), submit(["Kadri Vaheste"])], 2),
    ],
)
def test_a_second_run_is_made_if_the_first_is_doubtful(replies: list[str], runs: int) -> None:
    """Refused, or without a place in the input. The whole input is in the first message."""
    compute = Compute(votes=2, vote_if="doubtful")
    prediction = run(ScriptedLM(replies), "context -> answer: list[str]", compute=compute)
    assert prediction.agreement["runs"] == runs


def test_the_limits_hold_for_all_votes_together() -> None:
    code = "```python\nprint(llm_query('?'))\nSUBMIT(answer='x%d')\n```"
    lm = ScriptedLM(act=[code % n for n in range(5)], query=["!"] * 9)
    prediction = run(lm, compute=Compute(votes=5), limits=Limits(max_llm_calls=2, max_output_tokens=10_000))
    assert prediction.usage["by_role"]["query"]["calls"] == 2


def test_an_error_in_a_later_vote_keeps_the_first_answer() -> None:
    lm = ScriptedLM([submit("Kadri"), dspy.LMError(message="gone")])
    prediction = run(lm, compute=Compute(votes=3))
    assert (prediction.answer, prediction.agreement["runs"]) == ("Kadri", 1)


def test_votes_are_asked_anew_of_a_model_with_a_cache() -> None:
    class Counting(ScriptedLM):
        asked: list[Any] = []  # noqa: RUF012

        def copy(self, **options: Any) -> Any:
            Counting.asked.append(options)
            return self

    run(Counting([submit("a"), submit("b"), submit("b")]), compute=Compute(votes=3))
    assert [options["rollout_id"] for options in Counting.asked] == [1, 2]


class Cheap(ScriptedLM):
    """The cheap one of two models."""


SUB = "```python\nanswers = facts.map([context] * 2)\nSUBMIT(answer=answers[0])\n```"
GOOD = "[[ ## number ## ]]\n2019\n\n[[ ## completed ## ]]"


def cascade(cheap: ScriptedLM, code: str = SUB, **more: Any) -> tuple[RunPrediction, ScriptedLM]:
    lm = ScriptedLM(act=[code], subs=[GOOD] * 4, query=["better"] * 4)
    options = {"subs": {"facts": "passage -> number: int"}, "compute": Compute(cheap_lm=cheap)}
    return run(lm, "context -> answer", **options, **more), lm


def test_a_sub_call_asks_the_cheap_model_first() -> None:
    prediction, lm = cascade(ScriptedLM([GOOD] * 2))
    assert prediction.answer == "2019"
    assert lm.script.roles == ["act"]


@pytest.mark.parametrize("reply", ["no number", dspy.LMError(message="cheap is gone"), ""])
def test_an_item_that_the_cheap_model_fails_is_asked_of_the_usual_one(reply: Any) -> None:
    cheap = ScriptedLM([reply] * 9)
    prediction, lm = cascade(cheap)
    assert prediction.answer == "2019"
    assert lm.script.roles == ["act", "facts"]
    assert "could not be parsed" not in str(lm.script.calls[-1])
    assert prediction.trajectory[0]["calls"][0]["attempts"] == 2


def test_llm_query_asks_the_cheap_model_first() -> None:
    code = "```python\nSUBMIT(answer=llm_query('?') + llm_query('!'))\n```"
    prediction, _ = cascade(ScriptedLM(["cheap, ", dspy.LMError(message="gone")]), code)
    assert prediction.answer == "cheap,better"


def test_what_the_cheap_model_used_is_in_the_usage() -> None:
    prediction, _ = cascade(ScriptedLM(["no number"] * 9))
    assert prediction.usage["by_role"]["facts"]["calls"] >= 2


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"direct_below": 0}, ValueError, "direct_below must be a whole number of at least 1, not 0"),
        ({"votes": 1.5}, ValueError, "votes must be a whole number"),
        ({"vote_if": "often"}, ValueError, "'always' or 'doubtful', not 'often'"),
        ({"cheap_lm": "gpt"}, TypeError, "cheap_lm must be a dspy.LM"),
        ({"vote": 3}, TypeError, "votes"),
    ],
)
def test_wrong_options_are_told_with_the_fix(options: dict[str, Any], error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        Compute(**options)


def test_compute_is_a_group_of_options() -> None:
    with pytest.raises(TypeError, match=r"compute must be a Compute, e\.g\. Compute\(votes=3\), not 3"):
        RLM("context -> answer", compute=3)  # type: ignore[arg-type]


def test_a_record_says_that_one_call_answered() -> None:
    with dspy.context(lm=ScriptedLM([DIRECT.format("Kadri")])):
        record, _ = recorded(RLM("context -> answer", compute=Compute(direct_below=100)), {"context": TEXT})
    assert (record.stop, record.answered) == ("direct", True)
