"""Whatever is nested in what comes back as it went in, and no mark that code makes up does harm."""

from __future__ import annotations

import datetime as dt
import enum
from decimal import Decimal
from typing import Any

import dspy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlm_dspy.inputs import Record, Row
from rlm_dspy.interpreters import PythonInterpreter
from rlm_dspy.repl.stand_ins import described
from rlm_dspy.repl.value_codec import Media, sent, taken
from tests.crossing import OLD, Color, Level, Point, Tag, answer

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8), st.binary(max_size=8)
)
DATES = st.one_of(st.dates(), st.datetimes(), st.times(), st.timedeltas(), st.decimals(allow_nan=False))
KEYS = st.one_of(st.text(max_size=6), st.integers(), st.sampled_from(["__record__", "__type__", "items", "kind"]))
VALUES = st.recursive(
    st.one_of(SCALARS, DATES, st.sampled_from([*Color, *Level, *Tag])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(KEYS, inner, max_size=3),
        st.tuples(inner, inner),
        st.builds(OLD, inner, inner),
        st.builds(lambda y: Point(1, y), st.lists(inner, max_size=2)),
    ),
    max_leaves=12,
)


def shape(value: Any) -> Any:
    """Return a value with what may differ between host and REPL taken away: classes, tuples, microseconds."""
    if isinstance(value, enum.Enum):
        return value.value
    if found := described(value):
        return {name: shape(item) for name, item in found[2].items()}
    if isinstance(value, dict):
        return [(shape(key), shape(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [shape(item) for item in value]
    return value if not isinstance(value, Decimal) else str(value)


@pytest.mark.parametrize("kind", [PythonInterpreter, dspy.LocalInterpreter])
def test_values_come_back_as_they_went_in(kind: Any) -> None:
    """Whatever is nested in what: through a REPL and out of it."""
    media = Media()
    fuzzed: list[Any] = []

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(VALUES)
    def gather(value: Any) -> None:
        fuzzed.append(value)
        sent(value, media, strict=True)

    gather()
    assert shape(answer(kind, "x", x=fuzzed)) == shape(fuzzed)


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.one_of(SCALARS, st.just("media"), st.just("model")),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(
                st.sampled_from(["__record__", "__type__", "kind", "fields", "value", "a"]), inner, max_size=4
            ),
        ),
        max_leaves=10,
    )
)
def test_no_mark_that_code_makes_up_does_harm(value: Any) -> None:
    """It is a value, or refused."""
    try:
        made = taken(value, Media())
    except ValueError:
        return
    assert isinstance(
        made, str | int | float | bytes | list | tuple | dict | dt.date | dt.time | dt.timedelta | None
    )


def test_records_and_rows_of_a_repl_show_as_what_they_stand_for() -> None:
    """In trajectories and prompts."""
    assert repr(Record("model", "Claim", {"text": "a"})) == "Claim(text='a')"
    assert repr(Row.of("Pair", {"left": "a"})) == "Pair(left='a')"
