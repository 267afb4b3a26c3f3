"""A demo learned on one signature is shown in the names of another."""

from __future__ import annotations

import io
import tokenize
from pathlib import Path
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_dspy import RLM, Limits
from rlm_dspy.prompt.demo_renaming import renamed, under
from rlm_dspy.prompt.environment import write_environment
from rlm_dspy.prompt.nearest_demos import demos_for_run
from rlm_dspy.signatures import Environment, shipped_policies
from rlm_dspy.testing import ScriptedLM
from rlm_dspy.trajectory import Step, Trajectory
from tests.playing import block


def environment(signature: str, **inputs: Any) -> Environment:
    """Return the environment of a run."""
    return write_environment(dspy.Signature(signature), inputs, {}, Limits(), "")


LONG = "It rained. " * 500
STUDIED = Path(__file__).parents[2] / "experiment" / "policies"
CODE = """import re
# the context, line by line
lines = [line for line in context.split("\\n") if question in line]
print(f"{len(context)} characters: {context[:20]!r} context", find(context=context), row["context"])
answer = lines[0]
row.question = 1
SUBMIT(answer=answer)"""
RETOLD = """import re
# the context, line by line
lines = [line for line in document.split("\\n") if query in line]
print(f"{len(document)} characters: {document[:20]!r} context", find(context=document), row["context"])
answer = lines[0]
row.question = 1
SUBMIT(result=answer)"""


def demo(code: str = CODE, signature: str = "context, question -> answer", **inputs: Any) -> dict[str, Any]:
    """Return a demo with the same code in both of its turns."""
    given = inputs or {"context": LONG, "question": "Who?"}
    trajectory = Trajectory(steps=(Step(code=code, output="context"),))
    told = environment(signature, **given)
    return {"environment": told, "trajectory": trajectory, "reasoning": "Look.", "code": code}


@pytest.mark.parametrize("order", [("document", "query"), ("query", "document")])
def test_fields_are_matched_by_type_and_length_whatever_their_order(order: tuple[str, str]) -> None:
    values = {"document": LONG, "query": "Where?"}
    run = environment(f"{', '.join(order)} -> result", **{name: values[name] for name in order})
    told = renamed(demo(), run)
    assert (told["code"], told["trajectory"].steps[0].code) == (RETOLD, RETOLD)
    assert told["trajectory"].steps[0].output == "context"
    text = str(told["environment"])
    assert "- document: str, 5,500 characters" in text
    assert "- query: str, 'Who?'" in text
    assert "SUBMIT(result=...):\n- result: str" in text
    assert "`document`, `query`, produce the fields `result`" in text
    assert "question" not in text


def test_a_short_text_takes_the_place_of_a_long_one_where_there_is_no_long_one() -> None:
    run = environment("document, query -> result", document="It rained.", query="Where?")
    assert renamed(demo(), run)["code"] == RETOLD


def test_names_can_change_places() -> None:
    run = environment("question, context -> answer", question=LONG, context="Who?")
    assert renamed(demo("print(context, question)"), run)["code"] == "print(context, question)"
    run = environment("b: int, a: str -> c", b=3, a="x")
    assert renamed(demo("print(a, b)", "a: int, b: str -> c", a=3, b="x"), run)["code"] == "print(a, b)"


@pytest.mark.parametrize(
    ("signature", "inputs"),
    [
        ("context, question -> answer", {"context": LONG, "question": "Who?"}),
        ("document, count: int -> result", {"document": LONG, "count": 3}),
        ("document -> result", {"document": LONG}),
        ("document, query -> result, more", {"document": LONG, "query": "Who?"}),
        ("document, query -> result: int", {"document": LONG, "query": "Who?"}),
        ("lines, query -> result", {"lines": LONG, "query": "Who?"}),
    ],
    ids=["same names", "other type", "fewer inputs", "more outputs", "other output", "name taken"],
)
def test_a_demo_that_does_not_fit_stays_as_it_was(signature: str, inputs: dict[str, Any]) -> None:
    assert renamed(demo(), environment(signature, **inputs)) == demo()


def test_a_demo_whose_code_is_no_python_stays_as_it_was() -> None:
    run = environment("document, query -> result", document=LONG, query="Who?")
    broken = demo("print(context")
    assert renamed(broken, run) == broken


@given(st.text(alphabet="ab {}f'\"\\#\n()[]=,.:!0context", max_size=40))
def test_whatever_the_code_is_no_error_leaves(code: str) -> None:
    run = environment("document, query -> result", document=LONG, query="Who?")
    assert set(renamed(demo(code), run)) == set(demo())


def test_the_model_reads_the_demo_in_the_names_of_its_task() -> None:
    lm = ScriptedLM([block("SUBMIT(result='x')")])
    rlm = RLM("document, query -> result", policy=None, refuse_blind_submit=False)
    rlm.act.demos = [demo()]
    with dspy.context(lm=lm):
        assert rlm(document=LONG, query="Who?").result == "x"
    (messages,) = lm.script.calls
    assert RETOLD in messages[2]["content"]
    assert "question" not in str(messages).replace("row.question", "")


def test_a_demo_is_told_under_the_functions_and_the_runtime_of_the_run() -> None:
    """So they stand once, in the system message, whatever interpreter and tools the demo was found with."""
    found = demo()
    found["environment"] = write_environment(
        dspy.Signature("context, question -> answer"),
        {"context": LONG, "question": "?"},
        {},
        Limits(),
        "In a box.",
    )
    lm = ScriptedLM([block("SUBMIT(result='x')")])

    def look(page: int) -> str:
        """Return a page."""
        return str(page)

    rlm = RLM(
        "document, query -> result",
        policy=None,
        refuse_blind_submit=False,
        tools=[look],
        limits=Limits(max_llm_calls=3),
    )
    rlm.act.demos = [found]
    with dspy.context(lm=lm):
        rlm(document=LONG, query="Who?")
    said = "\n".join(message["content"] for message in lm.script.calls[0])
    assert "In a box." not in said
    assert [said.count(part) for part in ("Functions:", "Runtime:", "- look(page: int)")] == [1, 1, 1]
    assert "Functions:" in lm.script.calls[0][0]["content"]


def test_under_its_own_run_a_demo_stays_as_it_is() -> None:
    own = environment("context, question -> answer", context=LONG, question="Who?")
    assert under(own, own) == own


def test_what_a_value_says_is_no_field() -> None:
    """A text that is shown may hold the very lines that a rendered environment has."""
    page = "Variables:\n- query: str, 'x'\n\nWhen you know the answer, call SUBMIT(answer=...):\n- result: int"
    run = environment("document, query -> result", document=LONG, query=page)
    told = renamed(demo(context=LONG, question=page), run)
    assert told["code"] == RETOLD
    assert [variable.name for variable in told["environment"].variables] == ["document", "query"]
    assert told["environment"].variables[1].value == repr(page)


def test_the_task_is_renamed_where_it_quotes_a_field_and_nowhere_else() -> None:
    signature = dspy.Signature("context, question -> answer", "Use `context`; a context is long. Not `contexts`.")
    found = demo()
    found["environment"] = write_environment(signature, {"context": LONG, "question": "?"}, {}, Limits(), "")
    run = environment("document, query -> result", document=LONG, query="Who?")
    assert renamed(found, run)["environment"].task == "Use `document`; a context is long. Not `contexts`."


@pytest.mark.parametrize("policy", [*shipped_policies(), *sorted(map(str, STUDIED.glob("*.json")))])
def test_the_demos_of_a_policy_are_renamed_for_another_task(policy: str) -> None:
    """Of those that are shipped, and of those of the study."""
    run = environment("document, query -> result", document=LONG, query="Who?")
    act = RLM("context, question -> answer", policy=policy).act
    for found in demos_for_run(act, run, None) or act.demos:
        told = renamed(found, run)
        names = {token.string for token in tokenize.generate_tokens(io.StringIO(told["code"]).readline)}
        assert "SUBMIT" in names
        assert not names & {"context", "question", "answer"}
        assert [variable.name for variable in told["environment"].variables] == ["document", "query"]
        assert [output.name for output in told["environment"].outputs] == ["result"]


def test_a_demo_that_is_known_only_as_text_stays_as_it_was() -> None:
    run = environment("document, query -> result", document=LONG, query="Who?")
    found = demo() | {"environment": str(demo()["environment"])}
    assert renamed(found, run) == found


@pytest.mark.parametrize(
    "code", ["def f(context): return context\nf(context='x')", "g = lambda question: 1\ng(question=2)"]
)
def test_code_with_functions_whose_parameters_have_the_names_stays_as_it_was(code: str) -> None:
    """Renamed in one place and not in the other, it would be wrong."""
    run = environment("document, query -> result", document=LONG, query="Who?")
    assert renamed(demo(code), run) == demo(code)
