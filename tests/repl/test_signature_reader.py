"""What a signature may name, and what it may not have."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import dspy
import pandas as pd
import pytest
from pydantic import BaseModel, ConfigDict

from rlm_dspy import RLM, Files, Table
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.testing import ScriptedLM


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        ("date", dt.date),
        ("datetime", dt.datetime),
        ("datetime.date", dt.date),
        ("datetime.datetime", dt.datetime),
        ("list[date]", list[dt.date]),
        ("dict[str, timedelta]", dict[str, dt.timedelta]),
        ("time", dt.time),
        ("Decimal", Decimal),
    ],
)
def test_a_string_may_name_dates_and_times_without_an_import(written: str, kind: object) -> None:
    assert RLM(f"question -> value: {written}").signature.output_fields["value"].annotation == kind


@pytest.mark.parametrize("written", ["pd.DataFrame", "pandas.DataFrame", "DataFrame", "Table", "rlm_dspy.Table"])
def test_a_data_frame_is_a_table(written: str) -> None:
    """The variable in the REPL is what was given."""
    rlm = RLM(f"sales: {written}, day: date -> cities: list[str]", interpreter_factory=LocalPythonInterpreter)
    assert rlm.signature.input_fields["sales"].annotation is Table
    frame, code = pd.DataFrame({"city": ["Oslo"]}), "```python\nSUBMIT(cities=list(sales.city))\n```"
    with dspy.context(lm=ScriptedLM([code])):
        assert rlm(sales=frame, day=dt.date(2026, 1, 2)).cities == ["Oslo"]


def test_files_may_be_named() -> None:
    assert RLM("corpus: Files -> answer").signature.input_fields["corpus"].annotation is Files


class Mine(BaseModel):
    """A type of this module's."""


def test_types_of_the_caller_are_found_beside_them() -> None:
    class date(BaseModel):  # noqa: N801
        """Has the name of another type."""

    fields = RLM("frame: pd.DataFrame, day: date -> found: Mine").signature.fields
    assert [field.annotation for field in fields.values()] == [Table, date, Mine]


class Framed(dspy.Signature):
    """Make a table."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    question: str = dspy.InputField()
    rows: pd.DataFrame = dspy.OutputField()


@pytest.mark.parametrize("signature", ["question -> rows: Table", "question -> rows: pd.DataFrame", Framed])
def test_an_output_that_code_cannot_submit_is_refused_with_the_fix(signature: str | type[dspy.Signature]) -> None:
    with pytest.raises(ValueError, match=r"code cannot submit 'rows', a .*Take its rows, '-> rows: list\[dict\]'"):
        RLM(signature)


def test_an_unknown_name_is_told() -> None:
    with pytest.raises(ValueError, match="Invalid signature 'a -> b: Foo': Unknown name: Foo"):
        RLM("a -> b: Foo")
