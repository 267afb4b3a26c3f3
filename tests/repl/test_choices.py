"""Literals and enums of any kind are read from the texts that code and models write for them."""

from __future__ import annotations

import enum
from typing import Any, Literal

import pytest

from rlm_dspy.repl.coercion import read_value


class Grade(enum.Enum):
    """One of texts and numbers."""

    GOOD = "good"
    SECOND = 2


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (["1", 2], list[Literal[1, 2]], [1, 2]),
        ({"a": "true"}, dict[str, Literal[True, False]], {"a": True}),
        ([2, "1"], list[Literal["1", "2"]], ["2", "1"]),
        (2, Literal["1", "2"], "2"),
        ("ab", Literal[b"ab"], b"ab"),
        ("GOOD", Literal[Grade.GOOD], Grade.GOOD),
        ("good", Literal[Grade.GOOD], Grade.GOOD),
        (2, Literal[Grade.SECOND], Grade.SECOND),
        (["Grade.SECOND"], list[Literal[Grade.GOOD, Grade.SECOND]], [Grade.SECOND]),
    ],
    ids=str,
)
def test_a_text_or_number_stands_for_the_choice_that_it_names(value: Any, kind: Any, expected: Any) -> None:
    """Alone, and inside lists and dicts."""
    found = read_value(value, kind)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "kind"),
    [("3", Literal[1, 2]), (True, Literal["true", "false"]), (["a"], list[Literal["A", b"a"]])],
    ids=str,
)
def test_what_names_no_choice_or_several_is_refused(value: Any, kind: Any) -> None:
    """Nothing is guessed."""
    with pytest.raises(ValueError, match="expected"):
        read_value(value, kind)


def test_a_text_and_a_number_of_the_same_form_are_two_choices() -> None:
    """Each is read as itself."""
    assert read_value([1, "1"], list[Literal["1", 1]]) == [1, "1"]
