"""Where `dspy.RLM` fails, and ours does not."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

import rlm_dspy
from rlm_dspy.testing import ScriptedLM
from tests.optimize.test_upstream_habits import ASK, Section, act, fetch, run, search
from tests.playing import fields


def ours(signature: str = ASK, **options: Any) -> rlm_dspy.RLM:
    """Return our module on DSPy's own interpreter: what is better here is the module's doing."""
    return rlm_dspy.RLM(signature, interpreter_factory=dspy.LocalInterpreter, **options)


def test_variables_are_not_reset_on_every_turn() -> None:
    """Upstream sends every input again before each block and so undoes what the code changed."""
    replies = [act("items.append(3)"), act("SUBMIT(n=len(items))")]
    assert run(ours("items: list -> n: int"), *replies, items=[1, 2]).n == 3
    assert run(dspy.RLM("items: list -> n: int"), *replies, items=[1, 2]).n == 2


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ("search('a')", "['a 0', 'a 1']"),
        ("search('a', most=1)", "['a 0']"),
        ("look('a', 1)", "['a 0']"),
        ("fetch(3)", "page 3"),
    ],
)
def test_tools_are_called_by_position_too(call: str, answer: str) -> None:
    """Upstream's take keywords only, so the way most models write a call fails."""
    tools, reply = [search, dspy.Tool(search, name="look"), fetch], act(f"SUBMIT(answer=str({call}))")
    assert run(ours(tools=tools), reply, question="?").answer == answer
    theirs = run(dspy.RLM(ASK, tools=tools, max_iters=1), reply, fields(answer="none"), question="?")
    assert "TypeError" in theirs.trajectory[0]["output"]


def test_a_tool_called_with_too_many_arguments_says_what_it_takes() -> None:
    """The message shows the tool's own signature."""
    replies = [act("search('a', 1, 2)"), act("SUBMIT(answer='a')")]
    output = run(ours(tools=[search]), *replies, question="?").trajectory[0]["output"]
    assert "search(query: " in output
    assert "takes 2 positional arguments, not 3" in output


def test_a_reply_that_cannot_be_parsed_does_not_end_the_run() -> None:
    """Upstream raises, and the trajectory is lost."""
    replies = ["Just talk.", act("SUBMIT(answer='a')")]
    assert run(ours(), *replies, question="?").answer == "a"
    with pytest.raises(dspy.AdapterParseError):
        run(dspy.RLM(ASK), "Just talk.", "Just talk.", question="?")


def test_a_second_block_is_run() -> None:
    """Upstream drops it without a word."""
    reply = fields(reasoning="r", code="```python\nx = 1\n```\nand\n```python\nSUBMIT(answer=str(x))\n```")
    assert run(ours(), reply, question="?").answer == "1"


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, b"text", (1, 2)])
def test_inputs_beyond_json_reach_the_interpreter_of_dspy(value: Any) -> None:
    """Upstream fails on them after the first paid call; ours converts them before."""
    assert run(ours("value -> kind"), act("SUBMIT(kind=type(value).__name__)"), value=value).kind


def test_a_model_as_input_reaches_the_interpreter_of_dspy() -> None:
    """As the dict of its fields."""
    rlm = ours("section: dict -> title")
    pred = run(rlm, act("SUBMIT(title=section['title'])"), section=Section(title="T", pages=1))
    assert pred.title == "T"


def test_any_failure_in_a_batch_leaves_the_paid_answers() -> None:
    """Upstream throws the batch away unless the failure is an LMError, and refuses one over budget whole."""
    code = "SUBMIT(n=sum(1 for a in llm_query_batched(['a', 'b', 'c']) if a))"
    lm = ScriptedLM(lambda messages: "x" if len(messages[-1]["content"]) == 1 else act(code))
    with dspy.context(lm=lm):
        assert ours("question -> n: int", max_llm_calls=2)(question="?").n == 2


def test_an_optimizer_that_rewrites_the_instructions_does_not_lose_the_protocol() -> None:
    """Upstream's SUBMIT and its tools stand in the text that MIPROv2 and GEPA replace."""
    lm = ScriptedLM([act("SUBMIT(answer='a')")])
    rlm = ours(tools=[search])
    rlm.act.signature = rlm.act.signature.with_instructions("Be quick.")
    with dspy.context(lm=lm):
        rlm(question="?")
    sent = str(lm.script.calls[0])
    for part in ("Be quick.", "SUBMIT(answer=...)", "search(query: str", "llm_query"):
        assert part in sent


def test_an_error_from_the_model_carries_the_trajectory() -> None:
    """Upstream loses the paid steps."""
    with pytest.raises(dspy.LMError) as caught:
        run(ours(), act("print('paid')"), dspy.LMServerError("down"), question="?")
    assert vars(caught.value)["trajectory"][0]["output"].strip() == "paid"


def test_a_single_output_may_be_submitted_by_position() -> None:
    """Also on an interpreter of the protocol alone, if it lets it through."""
    assert run(ours("question -> n: int"), act("SUBMIT(3)"), question="?").n == 3
