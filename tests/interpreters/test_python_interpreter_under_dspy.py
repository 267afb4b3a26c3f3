"""The confined interpreter under DSPy's own modules."""

from __future__ import annotations

import json
import sys
from typing import Any

import dspy
import pytest
from dspy.utils.dummies import DummyLM

from rlm_dspy.interpreters.local import LocalPythonInterpreter
from rlm_dspy.interpreters.python import PythonInterpreter
from tests.interpreters.confined import light

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the confinement is of Linux")


@pytest.mark.parametrize("module", ["RLM", "Flex"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_can_be_made_the_default_of_dspy(module: str) -> None:
    """`dspy.configure(interpreter_factory=PythonInterpreter)`, here for a while."""
    made: list[PythonInterpreter] = []

    class Counted(PythonInterpreter):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    replies = {"RLM": {"reasoning": "", "code": "SUBMIT(question.upper())"}, "Flex": {"answer": "WHAT?"}}
    with dspy.context(interpreter_factory=Counted, lm=DummyLM([replies[module]])):
        assert getattr(dspy, module)("question -> answer")(question="what?").answer == "WHAT?"
    assert len(made) == 1


def test_a_model_of_dspy_that_repeats_a_large_input_is_fast() -> None:
    """Five turns on 20 MB; DSPy passes it at each of them."""
    text = "x" * 20_000_000
    turns = [{"reasoning": "", "code": "print(len(context))"}] * 4 + [{"reasoning": "", "code": "SUBMIT('done')"}]
    with dspy.context(lm=DummyLM(turns)):
        prediction = dspy.RLM("context, question -> answer", interpreter_factory=light)(context=text, question="?")
    assert prediction.answer == "done"
    assert [step["output"] for step in prediction.trajectory[:4]] == ["20000000"] * 4


@pytest.mark.parametrize("factory", [light, LocalPythonInterpreter])
def test_code_under_dspy_rlm_calls_a_tool_by_position(factory: Any) -> None:
    """`dspy.RLM` hands over a wrapper that takes names only, with the signature of the tool."""

    def add(first: int, second: int = 2) -> int:
        """Add."""
        return first + second

    replies = [{"reasoning": "", "code": "SUBMIT(add(2, 3) + add(1) + add(1, second=1))"}]
    with dspy.context(lm=DummyLM(replies)):
        answer = dspy.RLM("question -> total: int", tools=[add], interpreter_factory=factory)(question="?").total
    assert answer == 10


@pytest.mark.parametrize("factory", [light, LocalPythonInterpreter])
@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("{2, 1}", [1, 2]),
        ("__import__('decimal').Decimal('1.50')", "1.50"),
        ("__import__('datetime').date(2025, 3, 14)", "2025-03-14"),
        ("(1, {'a': range(2)})", [1, {"a": [0, 1]}]),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_program_of_thought_submits_what_json_can_carry(factory: Any, value: str, written: Any) -> None:
    """It writes what is submitted as JSON, and declares no fields."""
    turns = [{"reasoning": "", "generated_code": f"SUBMIT({value})"}, {"reasoning": "", "answer": "done"}]
    lm = DummyLM(turns)
    with dspy.context(lm=lm):
        thought = dspy.ProgramOfThought("question -> answer", interpreter_factory=factory)
        assert thought(question="?").answer == "done"
    assert json.dumps({"output": written}) in lm.history[-1]["messages"][-1]["content"]


@pytest.mark.parametrize("factory", [light, LocalPythonInterpreter])
@pytest.mark.parametrize("value", ["object()", "b'a'", "{(1, 2): 3}", "circle"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_program_of_thought_reads_why_a_value_cannot_leave(factory: Any, value: str) -> None:
    """Its next code submits another; the error does not end the program."""
    code = f"circle = []\ncircle.append(circle)\nSUBMIT({value})"
    turns = [{"reasoning": "", "generated_code": text} for text in (code, "SUBMIT(7)")]
    lm = DummyLM([*turns, {"reasoning": "", "answer": "done"}])
    with dspy.context(lm=lm):
        thought = dspy.ProgramOfThought("question -> answer", interpreter_factory=factory)
        assert thought(question="?").answer == "done"
    assert "SUBMIT got a value that cannot leave the REPL" in lm.history[1]["messages"][-1]["content"]
