"""A function as `sub_lm`, and the `model=` of `llm_query`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM, Limits
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.loop.function_lm import FunctionLM
from rlm_dspy.testing import ScriptedLM
from tests.crossing import every_interpreter
from tests.playing import block, fields

if TYPE_CHECKING:
    from tests.playing import Play


@every_interpreter
@pytest.mark.parametrize(
    "function",
    [
        lambda prompt: [f"about {prompt}"],
        lambda prompt: [{"text": f"about {prompt}"}],
        lambda prompt: f"about {prompt}",
    ],
    ids=["texts", "dicts", "a text"],
)
def test_sub_lm_may_be_a_function_of_the_prompt(factory: Any, function: Any) -> None:
    """As in `dspy.RLM`: it is called with the prompt, and its calls count."""
    rlm = RLM("x -> answer: list", sub_lm=function, interpreter_factory=factory)
    turn = block("SUBMIT(answer=[llm_query('a'), *llm_query_batched(['b', 'c'])])")
    with dspy.context(lm=ScriptedLM([turn])):
        prediction = rlm(x="1")
    assert prediction.answer == ["about a", "about b", "about c"]
    assert prediction.usage["by_role"]["query"]["calls"] == 3


def test_a_function_as_sub_lm_answers_typed_sub_calls(play: Play) -> None:
    """It sees instructions and fields as one text."""
    prompts: list[str] = []

    def function(prompt: str) -> str:
        prompts.append(prompt)
        return fields(label="a label")

    rlm = RLM("x -> answer", sub_lm=function)
    played = play(rlm, [block("SUBMIT(answer=dspy.Predict('text -> label')(text='sea').label)")], x="1")
    assert played.prediction.answer == "a label"
    assert "sea" in prompts[0]


async def test_an_async_function_as_sub_lm_is_awaited() -> None:
    """Under `await rlm.acall(...)`."""

    async def function(prompt: str) -> str:
        return f"about {prompt}"

    rlm = RLM("x -> answer", sub_lm=function, interpreter_factory=LocalPythonInterpreter)
    with dspy.context(lm=ScriptedLM([block("SUBMIT(answer=llm_query('a'))")])):
        assert (await rlm.acall(x="1")).answer == "about a"


def test_the_limits_of_a_function_as_sub_lm_are_kept(play: Play) -> None:
    """Calls are counted; a cost that nobody can know is not promised to be limited."""
    rlm = RLM("x -> answer", sub_lm=lambda prompt: prompt, limits=Limits(max_llm_calls=1))
    played = play(rlm, [block("print(llm_query_batched(['a', 'b']))"), block("SUBMIT(answer='x')")], x="1")
    assert "failed" in played.outputs[0] or "refused" in played.outputs[0] or "left" in played.outputs[0]
    assert FunctionLM(len).model == "function/len"


@pytest.mark.parametrize("given_lm", ["openai/gpt-5", 5, ScriptedLM])
def test_what_is_neither_an_lm_nor_a_function_is_refused(given_lm: Any) -> None:
    """The message says what to pass."""
    with pytest.raises(TypeError, match=r"dspy.LM\('openai/gpt-5-mini'\), or a function"):
        RLM("x -> answer", sub_lm=given_lm)


@every_interpreter
@pytest.mark.parametrize("call", ["llm_query('a', model={!r})", "llm_query_batched(['a'], model={!r})[0]"])
def test_model_may_name_the_model_that_is_asked_and_no_other(factory: Any, call: str) -> None:
    """No name is looked up; the error says which model there is."""
    good = [call.format(name) for name in ("scripted/lm", "lm", None)]
    turns = [block(call.format("openai/gpt-5")), block(f"SUBMIT(answer=[{', '.join(good)}])")]
    lm = ScriptedLM([*turns, "x", "x", "x"])
    with dspy.context(lm=lm):
        prediction = RLM("x -> answer: list", interpreter_factory=factory, cache=False)(x="1")
    assert "scripted/lm" in prediction.trajectory[0]["output"]
    assert "omit model=" in prediction.trajectory[0]["output"]
    assert prediction.answer == ["x", "x", "x"]
