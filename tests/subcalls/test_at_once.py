"""How many sub-calls are under way at once, and which are entered when a run ends before they do."""

from __future__ import annotations

import threading
from typing import Any

import dspy
import pytest

from rlm_dspy import RLM, Limits
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.testing import ScriptedLM
from tests.playing import block

ANSWER = "[[ ## answer ## ]]\nfine\n\n[[ ## completed ## ]]"
BOTH = pytest.mark.parametrize("interpreter", [PythonInterpreter, LocalPythonInterpreter])


class Many(dspy.Module):
    """Asks in threads of DSPy's."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("question -> answer")

    def forward(self, question: str) -> Any:
        """Ask thirty times."""
        pairs = [(self.ask, {"question": f"{question}{number}"}) for number in range(30)]
        parallel = dspy.Parallel(num_threads=4, disable_progress_bar=True, max_errors=100)
        return dspy.Prediction(answer=str(sum(each is not None for each in parallel(pairs))))


def run(code: str, lm: Any, limits: Limits, **given: Any) -> Any:
    """Return the prediction of a run of one cell."""
    rlm = RLM("context -> out", sub_lm=lm, limits=limits, policy=None, **given)
    with dspy.context(lm=ScriptedLM(lambda _: block(code))):
        return rlm(context="x")


@BOTH
def test_single_calls_that_are_gathered_keep_to_max_concurrency(interpreter: Any) -> None:
    together = threading.Barrier(3)

    def reply(_: Any) -> str:
        together.wait(60)
        return ANSWER

    lm = ScriptedLM(reply)
    code = (
        "import asyncio\n"
        "found = await asyncio.gather(*[ask.acall(str(i)) for i in range(21)])\n"
        "SUBMIT(out=str(len(found)))"
    )
    limits = Limits(max_concurrency=3)
    prediction = run(code, lm, limits, subs={"ask": "question -> answer"}, interpreter_factory=interpreter)
    assert prediction.out == "21"
    assert lm.script.most_at_once == 3


def test_calls_inside_a_call_do_not_wait_for_it() -> None:
    """A module whose RLM asks sub-models would wait for itself."""

    class Nested(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = RLM("question -> answer", policy=None)

        def forward(self, question: str) -> Any:
            code = f"SUBMIT(answer=llm_query('inner {question}'))"
            with dspy.context(lm=ScriptedLM(act=[block(code)], query=["fine"])):
                return self.inner(question=question)

    limits = Limits(max_concurrency=1, max_llm_calls=20)
    code = "SUBMIT(out=str(len([a for a in ask.map(['a', 'b', 'c']) if a])))"
    assert run(code, ScriptedLM(lambda _: ANSWER), limits, subs={"ask": Nested()}).out == "3"


def test_max_llm_calls_holds_in_threads_of_a_module() -> None:
    lm = ScriptedLM(lambda _: ANSWER)
    code = "try:\n    ask('a')\nexcept RuntimeError as error:\n    SUBMIT(out=str(error))"
    prediction = run(code, lm, Limits(max_llm_calls=7), subs={"ask": Many()})
    assert "0 of 7" in prediction.out
    assert len(lm.script.calls) == 7
    assert prediction.usage["by_role"]["ask"]["calls"] == 7
    assert prediction.usage["limit"] == "max_llm_calls"
    (call,) = prediction.trajectory[0]["calls"]
    assert call["spent"]["calls"] == 7


@BOTH
@pytest.mark.parametrize("limits", [Limits(max_seconds=4), Limits(max_cell_seconds=2)], ids=["run", "cell"])
def test_calls_that_time_cuts_are_entered_as_failed_and_the_limit_is_told(
    limits: Limits, interpreter: Any
) -> None:
    over = threading.Event()

    def slow(messages: list[dict[str, str]]) -> str:
        if "item 3" in messages[-1]["content"]:
            over.wait(60)
        return ANSWER

    lm = ScriptedLM(slow)
    code = "found = ask.map([f'item {i}' for i in range(5)])\nSUBMIT(out=str(sum(map(bool, found))))"
    try:
        prediction = run(code, lm, limits, subs={"ask": "question -> answer"}, interpreter_factory=interpreter)
    finally:
        over.set()
    assert prediction.out == "4"
    asked = prediction.usage["by_role"]["ask"]
    assert (asked["calls"], asked["failures"]) == (5, 1)
    assert prediction.usage["limit"] == ("max_seconds" if limits.max_seconds else "max_cell_seconds")


@BOTH
def test_a_field_that_is_named_like_a_method_of_dicts_is_read_as_an_attribute(interpreter: Any) -> None:
    reply = '[[ ## items ## ]]\n["a", "b"]\n\n[[ ## keys ## ]]\n3\n\n[[ ## completed ## ]]'
    code = "r = ask('x')\nprint(dict(r), r)\nSUBMIT(out=f'{len(r.items)} {r.keys} {r[\"keys\"]}')"
    subs = {"ask": "text -> items: list[str], keys: int"}
    prediction = run(code, ScriptedLM(lambda _: reply), Limits(), subs=subs, interpreter_factory=interpreter)
    assert prediction.out == "2 3 3"
