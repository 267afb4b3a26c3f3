"""The first message of a run: the task, the variables, the answer, the functions, the turns."""

from __future__ import annotations

import enum
from typing import Any, Literal

import dspy
import pytest
from pydantic import BaseModel

from rlm_dspy import Limits
from rlm_dspy.prompt.environment import write_calls, write_environment
from rlm_dspy.repl.tools import normalize_tools


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
    return write_environment(signature, inputs, normalize_tools(list(tools)), Limits(**limits), runtime, calls)


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
