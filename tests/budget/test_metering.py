"""A meter that is told of requests alone hears of every one, whatever asks it; others hear all that they did."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import dspy
import pydantic
import pytest
from dspy.utils.callback import BaseCallback

from rlm_dspy.budget.ledger import Ledger
from rlm_dspy.budget.metered_lm import metered
from rlm_dspy.errors import LimitExceeded
from rlm_dspy.limits import Limits
from rlm_dspy.testing import ScriptedLM

if TYPE_CHECKING:
    from collections.abc import Callable

ANSWER = "[[ ## answer ## ]]\nyes\n\n[[ ## completed ## ]]"


class Events(BaseCallback):
    """Notes what DSPy tells it."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_"):
            return lambda **_: self.names.append(name)
        return super().__getattribute__(name)


Case = tuple[dspy.Module, dict[str, Any], dict[str, int]]
"""Who asks, with which settings, and the tokens that each model wrote, as its script has them."""
PREDICT = "question -> answer"


def named(name: str, *replies: str) -> ScriptedLM:
    """Return an LM that goes by a name."""
    lm = ScriptedLM(list(replies))
    lm.model = name
    return lm


def plain() -> Case:
    return dspy.Predict(PREDICT), {"lm": named("a", ANSWER)}, {"a": 11}


def thoughtful() -> Case:
    reply = f"[[ ## reasoning ## ]]\nSo.\n\n{ANSWER}"
    return dspy.ChainOfThought(PREDICT), {"lm": named("a", reply)}, {"a": 17}


def unread_by_the_chat_adapter() -> Case:
    return dspy.Predict(PREDICT), {"lm": named("a", "what?", '{"answer": "yes"}')}, {"a": 3}


def adapter_with_a_second_lm() -> Case:
    adapter = dspy.TwoStepAdapter(named("b", ANSWER))
    return dspy.Predict(PREDICT), {"lm": named("a", "It is yes."), "adapter": adapter}, {"a": 3, "b": 11}


def adapter_of_a_class_of_the_callers() -> Case:
    class Mine(dspy.ChatAdapter):
        """Another name."""

    return dspy.Predict(PREDICT), {"lm": named("a", ANSWER), "adapter": Mine()}, {"a": 11}


def lm_that_asks_another() -> Case:
    other = named("b", "yes, yes")
    lm = ScriptedLM(lambda _: f"{other('sure?')}\n\n{ANSWER}")
    lm.model = "a"
    return dspy.Predict(PREDICT), {"lm": lm}, {"a": 13, "b": 2}


def validator_that_asks_an_lm() -> Case:
    judge = named("b", "it is fine")

    class Checked(pydantic.BaseModel):
        text: str

        @pydantic.field_validator("text")
        @classmethod
        def check(cls, text: str) -> str:
            judge(text)
            return text

    signature = dspy.Signature("question -> answer: Checked", custom_types={"Checked": Checked})
    return dspy.Predict(signature), {"lm": named("a", ANSWER.replace("yes", '{"text":"yes"}'))}, {"a": 11, "b": 3}


def predictor_whose_forward_was_replaced() -> Case:
    predict, judge = dspy.Predict(PREDICT), named("b", "go on")
    forward = predict.forward

    def watched(**inputs: Any) -> Any:
        judge("may I?")
        return forward(**inputs)

    predict.forward = watched
    return predict, {"lm": named("a", ANSWER)}, {"a": 11, "b": 2}


CASES = [
    plain,
    thoughtful,
    unread_by_the_chat_adapter,
    adapter_with_a_second_lm,
    adapter_of_a_class_of_the_callers,
    lm_that_asks_another,
    validator_that_asks_an_lm,
    predictor_whose_forward_was_replaced,
]


@pytest.mark.parametrize("others", [False, True], ids=["alone", "among others"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_every_request_is_entered_with_its_own_tokens(case: Callable[[], Case], others: bool) -> None:
    module, settings, expected = case()
    ledger, items, events = Ledger(Limits()), Ledger(Limits()), Events()
    with (
        dspy.context(callbacks=[events] if others else [], **settings),
        metered(ledger, "act"),
        metered(items, "act"),
    ):
        module(question="?")
    for each in (ledger, items):
        assert {name: used.output_tokens for name, used in each.usage().by_model.items()} == expected
    assert ledger.totals().calls == items.totals().calls
    if others:
        calls = ledger.totals().calls
        assert events.names.count("on_lm_start") == events.names.count("on_lm_end") == calls


def test_others_are_told_the_same_as_without_a_meter() -> None:
    for case in CASES:
        heard = []
        for scope in (contextlib.nullcontext(), metered(Ledger(Limits()), "act")):
            module, settings, _ = case()
            events = Events()
            with dspy.context(callbacks=[events], **settings), scope:
                module(question="?")
            heard.append(events.names)
        assert heard[0] == heard[1], case.__name__


def test_an_lm_that_a_callback_asks_is_entered() -> None:
    judge, ledger, ask = named("b", "fine"), Ledger(Limits()), dspy.Predict(PREDICT)

    class Judging(BaseCallback):
        def on_adapter_parse_end(self, call_id: str, outputs: Any, exception: Exception | None = None) -> None:
            judge(str(outputs))

    with (
        dspy.context(lm=named("a", ANSWER), callbacks=[Judging()]),
        metered(ledger, "act"),
    ):
        ask(question="?")
    assert ledger.usage().by_model["b"].calls == 1


def test_a_predictor_with_an_lm_of_its_own_is_entered() -> None:
    ledger, ask = Ledger(Limits()), dspy.Predict("question -> answer")
    ask.lm = named("own", ANSWER)
    with dspy.context(lm=named("other")), metered(ledger, "act"):
        ask(question="?")
    assert list(ledger.usage().by_model) == ["own"]


async def test_awaited_requests_are_entered() -> None:
    ledger, ask = Ledger(Limits()), dspy.Predict("question -> answer")
    with dspy.context(lm=named("a", ANSWER)), metered(ledger, "act"):
        await ask.acall(question="?")
    assert ledger.usage().by_model["a"].calls == 1


def test_of_a_refused_request_no_other_callback_hears() -> None:
    ledger, events, ask = Ledger(Limits(max_output_tokens=100)), Events(), dspy.Predict("question -> answer")
    ledger.close(LimitExceeded("Enough."))
    with (
        dspy.context(lm=named("a", ANSWER), callbacks=[events]),
        pytest.raises(LimitExceeded, match="Enough"),
        metered(ledger, "act"),
    ):
        ask(question="?")
    assert "on_lm_start" not in events.names
    assert "on_module_start" in events.names
