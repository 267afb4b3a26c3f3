"""Objects of all kinds, and runs of one block, for tests of what crosses the border of a REPL."""

from __future__ import annotations

import datetime as dt
import enum
from collections import namedtuple
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import dspy
import pytest
from pydantic import BaseModel

from rlm_dspy import RLM
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.testing import ScriptedLM
from tests.playing import block, fields

FACTORIES = [PythonInterpreter, LocalPythonInterpreter, dspy.LocalInterpreter]
every_interpreter = pytest.mark.parametrize("factory", FACTORIES)


class Color(enum.Enum):
    """A plain enum."""

    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    """One of numbers."""

    LOW = 1
    HIGH = 2


class Tag(str, enum.Enum):  # noqa: UP042 (as many still write it)
    """One of texts."""

    NEW = "new"


class Part(BaseModel):
    """Inside a claim."""

    number: int
    items: list[str] = []


class Claim(BaseModel):
    """A model."""

    text: str
    day: dt.date = dt.date(2025, 3, 14)
    color: Color = Color.RED
    parts: list[Part] = []
    first: Part | None = None


@dataclass(frozen=True)
class Point:
    """A dataclass."""

    x: int
    y: list[int] = field(default_factory=list, compare=False)


class Pair(NamedTuple):
    """A namedtuple."""

    left: str
    right: int


CLAIM = Claim(text="tides rise", parts=[Part(number=1, items=["a"])], first=Part(number=2))
OLD = namedtuple("OLD", "a b")  # noqa: PYI024 (as many still write it)


class See(dspy.Signature):
    """Say what is to be seen."""

    image: dspy.Image = dspy.InputField()
    label: str = dspy.OutputField()


class Judge(dspy.Signature):
    """Judge a claim."""

    claim: Claim = dspy.InputField()
    point: Point | None = dspy.InputField(default=None)
    label: str = dspy.OutputField()


def signature(inputs: dict[str, Any], **outputs: Any) -> Any:
    """Return a signature of these inputs, untyped, and of outputs of these types."""
    made: dict[str, Any] = {name: (Any, dspy.InputField()) for name in inputs}
    made |= {name: (kind, dspy.OutputField()) for name, kind in (outputs or {"answer": Any}).items()}
    return dspy.Signature(made)


def run(
    factory: Any, code: str, inputs: dict[str, Any], *, tools: Any = (), lm: Any = None, **outputs: Any
) -> Any:
    """Return the prediction of a run of one block, which must submit."""
    lm = lm or ScriptedLM(
        act=lambda _: block(code), query=lambda _: "an answer", subs=lambda _: fields(label="a label")
    )
    rlm = RLM(
        signature(inputs, **outputs),
        interpreter_factory=factory,
        tools=list(tools),
        subs={"see": See, "judge": Judge},
        max_iters=1,
    )
    with dspy.context(lm=lm):
        prediction = rlm(**inputs)
    assert prediction.stop == "submitted", prediction.trajectory[0]["output"]
    return prediction


def answer(factory: Any, expression: str, **inputs: Any) -> Any:
    """Return what an expression is in a REPL with these inputs."""
    return run(factory, f"SUBMIT(answer={expression})", inputs).answer
