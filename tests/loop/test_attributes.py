"""What the constructor took can be read and set afterwards: it is checked, and holds from the next call on."""

from __future__ import annotations

import copy
import pickle
from dataclasses import fields as fields_of
from typing import TYPE_CHECKING, Any

import cloudpickle
import dspy
import pytest

import rlm_dspy
from rlm_dspy import RLM, Limits
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.testing import ScriptedLM
from tests.playing import block, fields
from tests.subcalls.test_subs import Ask, Claims

if TYPE_CHECKING:
    from pathlib import Path

    from tests.playing import Play

LIMITS = ["max_iters", "max_llm_calls", "max_output_chars"]
"""Public attributes of `dspy.RLM`."""


@pytest.mark.parametrize("rlm_class", [dspy.RLM, rlm_dspy.RLM], ids=["dspy", "rlm_dspy"])
@pytest.mark.parametrize("name", LIMITS)
def test_limits_are_read_and_set_as_attributes(rlm_class: Any, name: str) -> None:
    """As with `dspy.RLM`, with the same defaults."""
    rlm = rlm_class("q -> answer")
    assert getattr(rlm, name) == getattr(dspy.RLM("q -> answer"), name)
    setattr(rlm, name, 150)
    assert getattr(rlm, name) == 150
    assert getattr(rlm_class("q -> answer", **{name: 160}), name) == 160


def test_every_limit_is_an_attribute() -> None:
    """What is set as one never lies unused beside `limits`."""
    rlm = RLM("q -> answer", limits=Limits(max_cost=1.0))
    assert {name: getattr(rlm, name) for name in (f.name for f in fields_of(Limits))} == vars(rlm.limits)
    rlm.max_cost, rlm.max_depth, rlm.max_seconds = 0.5, 2, 60
    assert rlm.limits == Limits(max_cost=0.5, max_depth=2, max_seconds=60)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("max_iters", 0, ValueError),
        ("max_iters", None, ValueError),
        ("max_iters", "5", ValueError),
        ("max_llm_calls", -1, ValueError),
        ("max_output_chars", 10, ValueError),
        ("max_cost", -1, ValueError),
        ("limits", {"max_iters": 3}, TypeError),
        ("tools", {"search": len}, TypeError),
        ("tools", [3], TypeError),
        ("tools", [dspy.Tool(lambda x: x, name="llm_query")], ValueError),
        ("tools", [dspy.Tool(lambda x: x, name="context")], ValueError),
        ("signature", 3, TypeError),
        ("signature", "no arrow", ValueError),
        ("signature", "SUBMIT -> answer", ValueError),
        ("signature", "claims -> answer", ValueError),
        ("sub_lm", "openai/gpt-5-mini", TypeError),
        ("interpreter_factory", 3, TypeError),
        ("interpreter_factory", LocalPythonInterpreter(), TypeError),
        ("cache", "answers.jsonl", TypeError),
        ("subs", {"context": Claims}, ValueError),
        ("subs", [3], TypeError),
    ],
)
def test_what_the_constructor_refuses_is_refused_afterwards(name: str, value: Any, error: type[Exception]) -> None:
    """With the same kind of error; what was there stays."""
    rlm = RLM("context -> answer", subs=[Claims])
    before = getattr(rlm, name)
    with pytest.raises(error):
        setattr(rlm, name, value)
    assert getattr(rlm, name) is before or getattr(rlm, name) == before


@pytest.mark.parametrize(
    "lm", ["openai/gpt-5-mini", dspy.LM, lambda prompt: [prompt]], ids=["name", "class", "fn"]
)
@pytest.mark.parametrize("of", ["act", "query", "settings"])
def test_what_is_no_lm_is_told_before_anything_is_asked(of: str, lm: Any) -> None:
    """As a `dspy.Predict` tells it; the message says where it was set, and what belongs there."""
    asked, set_as = ScriptedLM(), "dspy.settings.lm" if of == "settings" else f"rlm.{of}.lm"
    with dspy.context(lm=lm if of == "settings" else asked):
        rlm = RLM("question -> answer")
        if of != "settings":
            getattr(rlm, of).lm = lm
        with pytest.raises(
            ValueError, match=rf"^{set_as} must be a dspy\.LM, such as dspy\.LM\('openai/gpt-5-mini'"
        ):
            rlm(question="?")
    assert asked.script.calls == []


def test_max_iters_set_afterwards_bounds_the_run(play: Play) -> None:
    """The model is told so, and the answer extracted."""
    rlm = RLM("q -> answer")
    rlm.max_iters = 1
    played = play(rlm, [block("1"), fields(answer="a")], q="?")
    assert (played.prediction.stop, len(played.calls)) == ("extracted", 2)
    assert "the last turn" in played.calls[0][-1]["content"]


def test_max_llm_calls_and_max_output_chars_set_afterwards_hold(play: Play) -> None:
    """In the run, and in its children."""
    rlm = RLM("q -> answer")
    rlm.max_llm_calls = 0
    rlm.max_output_chars = 100
    played = play(
        rlm,
        [
            block("print('x' * 999)"),
            block("try:\n    llm_query('y')\nexcept SubCallError as e:\n    print(str(e)[:60])"),
            block("SUBMIT(answer='a')"),
        ],
        q="?",
    )
    assert "characters left out" in played.outputs[0]
    assert "0 of 0" in played.outputs[1]
    assert "llm_query" not in played.calls[0][-1]["content"]


def test_limits_set_afterwards_reach_children(play: Play) -> None:
    """A child takes no more turns than its parent may."""
    rlm = RLM("q -> answer")
    rlm.max_iters, rlm.max_output_chars = 2, 120
    lm = ScriptedLM(
        act=[block("SUBMIT(answer=rlm_query('Respond.'))")],
        child=lambda _: block("print('x' * 999)"),
        extract=[fields(response="r")],
    )
    (call,) = play(rlm, lm, q="?").prediction.trajectory[0]["calls"]
    assert len(call["steps"]) == 2
    assert len(call["steps"][0]["output"]) < 200


@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        lambda rlm: rlm.deepcopy(),
        lambda rlm: rlm.reset_copy(),
        lambda rlm: pickle.loads(pickle.dumps(rlm)),
        lambda rlm: cloudpickle.loads(cloudpickle.dumps(rlm)),
    ],
    ids=["copy", "deepcopy", "dspy", "reset", "pickle", "cloudpickle"],
)
def test_attributes_survive_copies(copied: Any) -> None:
    """And what is set on a copy stays there."""
    rlm = RLM(Ask, tools=[search], subs=[Claims])
    rlm.max_iters, rlm.verbose = 3, True
    again = copied(rlm)
    assert (again.max_iters, again.verbose) == (3, True)
    assert (list(again.tools), again.subs.names()) == (["search"], ["claims"])
    again.max_iters = 4
    assert (rlm.max_iters, again.max_iters) == (3, 4)


def test_a_copy_attribute_by_attribute_keeps_them() -> None:
    """DSPy does it where something cannot be copied as a whole."""

    class Stubborn:
        def __deepcopy__(self, memo: dict[int, Any]) -> Stubborn:
            raise TypeError("not me")

        def __copy__(self) -> Stubborn:
            raise TypeError("not me")

    rlm = RLM("q -> answer", tools=[search], subs=[Claims], max_iters=3)
    rlm.note = Stubborn()
    again = rlm.deepcopy()
    assert (again.max_iters, list(again.tools), again.subs.names()) == (3, ["search"], ["claims"])


def test_a_saved_program_keeps_its_limits(tmp_path: Path) -> None:
    """Saved whole; a state alone is loaded into an RLM that has limits of its own."""
    rlm = RLM("q -> answer")
    rlm.max_iters = 3
    rlm.save(str(tmp_path / "whole"), save_program=True)
    assert dspy.load(str(tmp_path / "whole"), allow_pickle=True).max_iters == 3
    rlm.save(str(tmp_path / "state.json"))
    other = RLM("q -> answer", max_iters=5)
    other.load(str(tmp_path / "state.json"))
    assert other.max_iters == 5


def search(query: str) -> str:
    """Find it."""
    return f"found {query}"


def test_tools_subs_and_signature_set_afterwards_are_there(play: Play) -> None:
    """The model is told of them, and can call them."""
    rlm = RLM("q -> answer")
    rlm.tools = [search]
    rlm.tools = {**rlm.tools, "again": dspy.Tool(search, name="again")}
    rlm.subs = {"gist": "text -> gist"}
    rlm.signature = "question -> count: int"
    lm = ScriptedLM([block("print(search(query=question), again(query='b'))"), block("SUBMIT(count=2)")])
    played = play(rlm, lm, question="a")
    assert played.outputs[0].strip() == "found a found b"
    assert played.prediction.count == 2
    environment = played.calls[0][-1]["content"]
    assert all(name in environment for name in ("- search(", "- again(", "- gist(text"))
    assert "subs.gist" in dict(rlm.named_predictors())


def test_an_interpreter_factory_and_a_sub_lm_set_afterwards_are_used() -> None:
    """At the next call."""
    made: list[Any] = []

    def factory() -> Any:
        made.append(LocalPythonInterpreter())
        return made[-1]

    rlm, small = RLM("q -> answer"), ScriptedLM(["small"])
    rlm.interpreter_factory, rlm.sub_lm = factory, small
    with dspy.context(lm=ScriptedLM([block("SUBMIT(answer=llm_query('x'))")])):
        assert rlm(q="?").answer == "small"
    assert len(made) == len(small.script.calls) == 1
