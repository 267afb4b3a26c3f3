"""An RLM as a callable that says what it takes: to `inspect`, to `dspy.Tool`, to agents whose tool it is."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import cloudpickle
import dspy
import pytest
from dspy.adapters.utils import serialize_for_json
from pydantic import BaseModel

from rlm_dspy import RLM, Limits
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.testing import ScriptedLM
from tests.playing import block, fields

if TYPE_CHECKING:
    from tests.playing import Play


class Doc(BaseModel):
    title: str


class Ask(dspy.Signature):
    """Answer from the context."""

    context: str = dspy.InputField(desc="a long text")
    kind: Literal["short", "long"] = dspy.InputField(default="short")
    docs: list[Doc] = dspy.InputField(desc="more of it")
    answer: str = dspy.OutputField()


def test_the_constructor_shows_its_parameters() -> None:
    """As `dspy.RLM` does, and by the same names."""
    ours, theirs = inspect.signature(RLM).parameters, inspect.signature(dspy.RLM.__init__).parameters
    assert list(ours)[: len(theirs) - 1] == [name for name in theirs if name != "self"]
    assert ours["max_iters"].default is None
    assert ours["limits"].kind is inspect.Parameter.KEYWORD_ONLY


def test_a_class_below_it_shows_its_own_parameters() -> None:
    class Mine(RLM):
        def __init__(self, depth: int) -> None:
            super().__init__("q -> a", limits=Limits(max_depth=depth))

    assert list(inspect.signature(Mine).parameters) == ["depth"]
    assert list(inspect.signature(Mine(1)).parameters) == ["q"]


def test_an_instance_shows_the_inputs_of_its_signature() -> None:
    shown = inspect.signature(RLM("context, question: int -> answer"))
    assert {name: of.annotation for name, of in shown.parameters.items()} == {"context": str, "question": int}
    assert all(of.kind is inspect.Parameter.KEYWORD_ONLY for of in shown.parameters.values())
    assert inspect.signature(RLM(Ask)).parameters["kind"].default == "short"


def test_a_tool_has_the_inputs_with_types_and_descriptions() -> None:
    plain = dspy.Tool(RLM("context, question -> answer"))
    assert plain.args == {"context": {"type": "string"}, "question": {"type": "string"}}
    tool = dspy.Tool(RLM(Ask), name="ask")
    assert (tool.name, tool.desc) == ("ask", "Answer from the context.")
    assert tool.args["context"] == {"type": "string", "description": "a long text"}
    assert tool.args["kind"] == {"enum": ["short", "long"], "type": "string", "default": "short"}
    assert (tool.args["docs"]["type"], tool.args["docs"]["description"]) == ("array", "more of it")
    assert tool.args["docs"]["items"]["properties"]["title"]["type"] == "string"
    required = tool.format_as_litellm_function_call()["function"]["parameters"]["required"]
    assert required == ["context", "docs"]


def test_a_type_without_a_schema_is_any_type() -> None:
    fields_of = {"count": (Callable[[str], int], dspy.InputField(desc="counts")), "n": (int, dspy.OutputField())}
    assert dspy.Tool(RLM(dspy.Signature(fields_of))).args == {"count": {"description": "counts"}}


def test_a_tool_answers_and_refuses_other_arguments(play: Play) -> None:
    rlm = RLM(Ask)
    tool = dspy.Tool(rlm)
    lm = ScriptedLM([block("SUBMIT(answer=context + kind)")])
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
        assert tool(context="c", docs=[{"title": "t"}]).answer == "cshort"
    with pytest.raises(ValueError, match="Arg wrong is not in the tool's args"):
        tool(wrong=1)
    played = play(rlm, [block("SUBMIT(answer=context)")], context="as ever", docs=[])
    assert played.prediction.answer == "as ever"


def test_an_agent_has_an_rlm_as_a_tool(play: Play) -> None:
    """It is told what the tool takes, and is given the answer."""
    tool = dspy.Tool(RLM(dspy.Signature("context -> answer", "Shout.")), name="ask")
    replies = [
        fields(next_thought="t", next_tool_name="ask", next_tool_args='{"context": "some text"}'),
        fields(next_thought="t", next_tool_name="finish", next_tool_args="{}"),
        fields(reasoning="r", found="FOUND"),
    ]
    lm = ScriptedLM(replies, act=[block("SUBMIT(answer=context.upper())")])
    played = play(dspy.ReAct("question -> found", tools=[tool]), lm, question="?")
    assert played.prediction.found == "FOUND"
    assert played.prediction.trajectory["observation_0"].answer == "SOME TEXT"
    assert "{'context': {'type': 'string'}}" in str(played.calls[0][0]["content"])


def test_an_agent_reads_of_an_rlm_that_is_its_tool_the_outputs_alone(play: Play) -> None:
    """Its trajectory and usage would fill the agent's prompt."""
    rlm = RLM("text -> words: int, longest: str", interpreter_factory=LocalPythonInterpreter)
    prediction = play(rlm, [block("SUBMIT(words=2, longest='be')")], text="to be").prediction
    assert serialize_for_json(prediction) == {"words": 2, "longest": "be"}


def test_an_rlm_is_a_tool_of_another(play: Play) -> None:
    inner = dspy.Tool(RLM(dspy.Signature("context -> answer", "Shout.")), name="ask")
    replies = [block("SUBMIT(loud=ask(context='text').answer)"), block("SUBMIT(answer=context.upper())")]
    played = play(RLM("question -> loud", tools=[inner]), replies, question="?")
    assert played.prediction.loud == "TEXT"
    assert "ask(*, context: str)" in str(played.calls[0])


def test_code_gets_of_an_rlm_that_is_its_tool_the_outputs_alone() -> None:
    """Also where they are None, and in a process that does not know the class of the files of a run."""
    inner = dspy.Tool(RLM("context -> answer, stop: str", max_iters=1), name="ask")
    code = "p = ask(context='a')\nq = ask(context='b')\nSUBMIT(got=[str(p), p.answer, str(q.answer)])"
    act = [block(code), block("SUBMIT(answer='x', stop='never')"), block("pass")]
    with dspy.context(lm=ScriptedLM(act=act, extract=lambda _: ""), interpreter_factory=PythonInterpreter):
        prediction = RLM("question -> got: list[str]", tools=[inner])(question="?")
    assert prediction.got == ["RunPrediction(answer='x', stop='never')", "x", "None"]


def test_a_prediction_of_a_run_is_an_input_of_another() -> None:
    lm = ScriptedLM([block("SUBMIT(words=3)"), block("SUBMIT(twice=2 * runs[0].words)")])
    with dspy.context(lm=lm, interpreter_factory=PythonInterpreter):
        prediction = RLM("text -> words: int")(text="to be or")
        assert RLM("runs -> twice: int")(runs=[prediction]).twice == 6


@pytest.mark.parametrize("form", [copy.copy, copy.deepcopy, lambda rlm: pickle.loads(cloudpickle.dumps(rlm))])
def test_a_copy_shows_the_same(form: Any) -> None:
    copied = form(RLM(Ask))
    assert list(inspect.signature(copied).parameters) == ["context", "kind", "docs"]
    assert dspy.Tool(copied).args == dspy.Tool(RLM(Ask)).args


def test_a_signature_that_is_set_later_is_the_one_that_is_shown() -> None:
    rlm = RLM("a -> b")
    rlm.signature = "c: int -> d"
    assert dspy.Tool(rlm).args == {"c": {"type": "integer"}}
