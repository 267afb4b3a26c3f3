"""Models with aliases, and with more fields than their class names, cross as others do."""

from __future__ import annotations

from typing import Any

import dspy
import pytest
from pydantic import BaseModel, ConfigDict, Field

from rlm_dspy import RLM
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.testing import ScriptedLM
from tests.playing import block, fields


class Renamed(BaseModel):
    """A model with aliases."""

    model_config = ConfigDict(extra="forbid")
    foo_bar: int = Field(alias="fooBar")
    within: Renamed | None = Field(default=None, validation_alias="inner-one")


class Name(dspy.Signature):
    """Name what has aliases."""

    renamed: Renamed = dspy.InputField()
    label: str = dspy.OutputField()


class Hand(dspy.Signature):
    """Hand it on."""

    x: Any = dspy.InputField()
    seen: list[int] = dspy.OutputField()
    asked: list[str] = dspy.OutputField()
    same: Renamed = dspy.OutputField()
    inside: dict[str, list[Renamed]] = dspy.OutputField()
    optional: Renamed | None = dspy.OutputField()
    by_alias: Renamed = dspy.OutputField()


RENAMED = Renamed.model_validate({"fooBar": 1, "inner-one": {"fooBar": 2}})
CODE = """
SUBMIT(
    seen=[x.foo_bar, x.within.foo_bar],
    asked=[name(renamed=x), *name.map([x])],
    same=x,
    inside={"a": [x]},
    optional=x,
    by_alias={"fooBar": 3},
)
"""


@pytest.mark.parametrize("factory", [PythonInterpreter, LocalPythonInterpreter])
def test_a_model_with_aliases_can_be_submitted_and_asked_about(factory: Any) -> None:
    """Code has its fields by their names; JSON may have the aliases."""
    lm = ScriptedLM(lambda _: fields(label="one"), act=[block(CODE)])
    rlm = RLM(Hand, subs={"name": Name}, interpreter_factory=factory, max_iters=1)
    with dspy.context(lm=lm):
        prediction = rlm(x=RENAMED)
    assert prediction.stop == "submitted", prediction.trajectory[0]["output"]
    assert (prediction.seen, prediction.asked) == ([1, 2], ["one", "one"])
    assert [prediction.same, prediction.inside, prediction.optional] == [RENAMED, {"a": [RENAMED]}, RENAMED]
    assert prediction.by_alias == Renamed(fooBar=3)


class Open(BaseModel):
    """A model that takes any field besides its own."""

    model_config = ConfigDict(extra="allow")
    known: int
    more: Open | None = None


@pytest.mark.parametrize("factory", [PythonInterpreter, LocalPythonInterpreter])
def test_what_a_model_took_besides_its_fields_crosses(factory: Any) -> None:
    class Tell(dspy.Signature):
        """Tell what is there."""

        x: Open = dspy.InputField()
        seen: list[int] = dspy.OutputField()
        same: Open = dspy.OutputField()
        nested: list[Open] = dspy.OutputField()

    given = Open.model_validate({"known": 1, "other": 2, "more": {"known": 3, "deep": 4}})
    code = "SUBMIT(seen=[x.other, x.more.deep], same=x, nested=[x.more, {'known': 5, 'free': 6}])"
    with dspy.context(lm=ScriptedLM(act=[block(code)])):
        prediction = RLM(Tell, interpreter_factory=factory, max_iters=1)(x=given)
    assert prediction.stop == "submitted", prediction.trajectory[0]["output"]
    assert prediction.seen == [2, 4]
    assert prediction.same.model_dump() == given.model_dump()
    assert [each.model_extra for each in prediction.nested] == [{"deep": 4}, {"free": 6}]
