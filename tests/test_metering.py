"""A meter that is told of requests alone hears of every one, whatever asks it; others hear all that they did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dspy
import pytest
from dspy.utils.callback import BaseCallback

from rlm_dspy.errors import LimitExceeded
from rlm_dspy.fitting import fitting
from rlm_dspy.ledger import Ledger
from rlm_dspy.limits import Limits
from rlm_dspy.metering import metered
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


def entered(
    call: Callable[[dspy.Predict], Any], *, aside: bool, **settings: Any
) -> tuple[dict[str, int], list[str]]:
    """Return the calls by model that a ledger has of one question, and what another callback heard."""
    ledger, events, ask = Ledger(Limits()), Events(), dspy.Predict("question -> answer")
    with (
        dspy.context(callbacks=[events], **settings),
        metered(ledger, "act"),
        fitting(module=ask if aside else None),
    ):
        call(ask)
    return {model: spent["calls"] for model, spent in ledger.usage()["by_model"].items()}, events.names


def question(ask: dspy.Predict) -> Any:
    """Ask."""
    return ask(question="?")


def named(name: str, *replies: str) -> ScriptedLM:
    """Return an LM that goes by a name."""
    lm = ScriptedLM(list(replies))
    lm.model = name
    return lm


def asking(other: dspy.LM) -> ScriptedLM:
    """Return an LM whose reply another gives."""
    lm = ScriptedLM(lambda messages: str(other(messages[-1]["content"])[0]))
    lm.model = "a"
    return lm


CASES: dict[str, tuple[Callable[[], dict[str, Any]], dict[str, int]]] = {
    "an LM in force": (lambda: {"lm": named("a", ANSWER)}, {"a": 1}),
    "a JSON answer after one that ChatAdapter cannot read": (
        lambda: {"lm": named("a", "what?", '{"answer": "yes"}')},
        {"a": 2},
    ),
    "an adapter that asks a second LM": (
        lambda: {"lm": named("a", "It is yes."), "adapter": dspy.TwoStepAdapter(named("b", ANSWER))},
        {"a": 1, "b": 1},
    ),
    "an LM that asks another": (
        lambda: {"lm": asking(named("b", ANSWER))},
        {"a": 1, "b": 1},
    ),
    "an adapter of the caller's own class": (
        lambda: {"lm": named("a", ANSWER), "adapter": type("Mine", (dspy.ChatAdapter,), {})()},
        {"a": 1},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_request_is_entered_and_heard_of_whatever_asks_it(case: str) -> None:
    settings, expected = CASES[case]
    plain, heard_plainly = entered(question, aside=False, **settings())
    aside, heard = entered(question, aside=True, **settings())
    assert plain == aside == expected
    assert heard == heard_plainly
    assert heard.count("on_lm_start") == heard.count("on_lm_end") == sum(expected.values())


def test_a_predictor_with_an_lm_of_its_own_is_entered() -> None:
    ledger, ask = Ledger(Limits()), dspy.Predict("question -> answer")
    ask.lm = named("own", ANSWER)
    with dspy.context(lm=named("other")), metered(ledger, "act"), fitting(module=ask):
        ask(question="?")
    assert list(ledger.usage()["by_model"]) == ["own"]


async def test_awaited_requests_are_entered() -> None:
    ledger, ask = Ledger(Limits()), dspy.Predict("question -> answer")
    with dspy.context(lm=named("a", ANSWER)), metered(ledger, "act"), fitting(module=ask):
        await ask.acall(question="?")
    assert ledger.usage()["by_model"]["a"]["calls"] == 1


def test_of_a_refused_request_no_other_callback_hears() -> None:
    ledger, events, ask = Ledger(Limits(max_output_tokens=100)), Events(), dspy.Predict("question -> answer")
    ledger.close(LimitExceeded("Enough."))
    with (
        dspy.context(lm=named("a", ANSWER), callbacks=[events]),
        pytest.raises(LimitExceeded, match="Enough"),
        metered(ledger, "act"),
        fitting(module=ask),
    ):
        ask(question="?")
    assert "on_lm_start" not in events.names
    assert "on_module_start" in events.names
