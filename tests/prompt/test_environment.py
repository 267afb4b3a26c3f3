"""The first message of a run: the task, the variables, the answer, the functions, the turns."""

from __future__ import annotations

import copy
import enum
import json
import pickle
from typing import Any, Literal

import dspy
import pytest
from pydantic import BaseModel

from rlm_dspy import Limits, signatures
from rlm_dspy.inputs import describe
from rlm_dspy.prompt.adapter import Act
from rlm_dspy.prompt.environment import write_calls, write_environment
from rlm_dspy.repl.tools import normalize_tools
from rlm_dspy.signatures import Environment
from rlm_dspy.trajectory import Trajectory


class Grade(enum.Enum):
    GOOD = "good"
    POOR = "poor"


class Author(BaseModel):
    name: str


class Article(BaseModel):
    title: str
    authors: list[Author]


class Sort(dspy.Signature):
    """Sort the articles."""

    articles: list[str] = dspy.InputField()
    topic: str = dspy.InputField(desc="what they are about", max_length=9)
    best: list[Article] = dspy.OutputField(desc="best first")
    grade: Grade | None = dspy.OutputField()
    kind: Literal["news", "opinion"] = dspy.OutputField()
    score: float = dspy.OutputField(ge=0, le=1)


def environment(signature: Any = "question -> answer", tools: Any = (), runtime: str = "", **limits: Any) -> str:
    """Return the environment of a signature with short inputs."""
    signature = dspy.Signature(signature) if isinstance(signature, str) else signature
    calls = write_calls([], children=False, awaits=False)
    inputs = dict.fromkeys(signature.input_fields, "x")
    known = normalize_tools(list(tools))
    return str(write_environment(signature, inputs, known, Limits(**limits), runtime, calls))


@pytest.mark.parametrize(
    "part",
    [
        "Task: Sort the articles.",
        "- topic: str, 'x'  # what they are about",
        "maximum length: 9",
        "less than or equal to: 1",
        "SUBMIT(best=..., grade=..., kind=..., score=...)",
        "- best: list[Article] (Article is a dict with title: str, authors: list[Author]; Author is a dict with ",
        "Author is a dict with name: str",
        "# best first",
        "Grade is one of ['good', 'poor']",
        "Literal['news', 'opinion']",
    ],
)
def test_the_signature_is_written_out(part: str) -> None:
    """Task, descriptions, constraints, and the types down to their parts."""
    assert part in environment(Sort)


def test_a_field_without_a_description_has_none() -> None:
    """DSPy's placeholder is not shown."""
    assert "${" not in environment()
    assert "- answer: str\n" in environment()


def join(parts: list[str], sep: str = ", ", *, last: str | None = None) -> str:
    """Join parts.

    With a separator.
    """
    return sep.join([*parts, last or ""])


def test_a_tool_is_shown_as_a_typed_stub() -> None:
    """Names, types without quotes, defaults as they are, the docstring on one line."""
    shown = environment(tools=[join])
    assert (
        "- join(parts: list[str], sep: str = ', ', *, last: str | None = None) -> str  # Join parts. With" in shown
    )


def test_a_tool_under_another_name_is_shown_under_it() -> None:
    """The name that code calls."""
    assert "- glue(parts: " in environment(tools=[dspy.Tool(join, name="glue", desc="Glue.")])


def test_a_long_description_of_a_tool_is_cut() -> None:
    """One tool does not fill the prompt."""
    assert len(environment(tools=[dspy.Tool(join, desc="word " * 5_000)])) < 2_000


def test_the_functions_and_limits_are_named() -> None:
    """What may be called and how often."""
    shown = environment(max_llm_calls=7, max_iters=9)
    for part in ("llm_query(prompt: str) -> str", "llm_query_batched(", "7 model calls", "SHOW_VARS()", "9 turns"):
        assert part in shown
    assert "Runtime" not in shown
    assert "Runtime: confined" in environment(runtime="confined")


def sorting(**limits: Any) -> Environment:
    """Return the environment of a signature with a long text, a list and descriptions."""
    inputs = {"articles": ["a " * 900, "b"], "topic": "x" * 5_000}
    calls = write_calls([], children=True, awaits=True)
    return write_environment(Sort, inputs, normalize_tools([join]), Limits(**limits), "confined", calls)


def test_an_environment_is_the_same_after_it_was_saved() -> None:
    """As a demo in the state of a predictor, as JSON, and in a pickle."""
    act = Act(signatures.Act)
    act.demos = [dspy.Example(environment=sorting(), trajectory=Trajectory(), reasoning="r", code="c")]
    loaded = Act(signatures.Act)
    loaded.load_state(json.loads(json.dumps(act.dump_state())))
    assert Environment.model_validate(loaded.demos[0]["environment"]) == sorting()
    assert pickle.loads(pickle.dumps(sorting())) == copy.deepcopy(sorting()) == sorting()


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter()])
def test_another_adapter_shows_an_environment_as_text(adapter: dspy.Adapter) -> None:
    """As `act` shows it: with line ends, and no JSON around it."""
    inputs = {"environment": sorting(), "trajectory": Trajectory()}
    messages = adapter.format(signatures.Act, [], inputs)
    assert str(sorting()) in messages[-1]["content"]


def test_a_shortened_environment_keeps_every_name_and_type() -> None:
    """Only long texts give way: so the model still knows what there is and how to answer."""
    whole = sorting()
    short = whole.shortened(900)
    assert len(str(short)) < len(str(whole)) - 300
    assert [(v.name, v.type) for v in short.variables] == [(v.name, v.type) for v in whole.variables]
    assert short.outputs == whole.outputs
    assert whole.shortened(100_000) == whole


def test_values_give_way_before_what_code_may_call() -> None:
    """And a value that is cut shows that it is."""
    signature = dspy.Signature(", ".join(f"input_{n}" for n in range(30)) + " -> answer")
    variables = tuple(describe(name, f"value of {name} " * 50) for name in signature.input_fields)
    whole = sorting().model_copy(update={"variables": variables})
    short = whole.shortened(4_000)
    assert len(str(short)) <= 4_000
    assert (short.functions, short.task) == (whole.functions, whole.task)
    assert all("…" in each.value or "left out" in each.value for each in short.variables)


def test_a_variable_that_hides_a_name_of_python_says_so_under_its_own_name() -> None:
    """Also after a demo was renamed."""
    hiding = describe("list", [1])
    assert str(hiding).endswith("# shadows Python's list; use builtins.list")
    assert "hides" not in str(hiding.model_copy(update={"name": "rows"}))
