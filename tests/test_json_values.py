"""How values become JSON."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel, Field

from rlm_dspy.json_values import jsonable

FLIPPING: set[int] = {15, 7}
"""Iterates in another order after each copy: the second number lands in front of the first one."""


@dataclass
class Point:
    """A dataclass with a set."""

    tags: set[int]


class Labeled(BaseModel):
    """A model with a set under another name."""

    tags: set[int] = Field(serialization_alias="labels")


@pytest.mark.parametrize(
    ("made", "plain"),
    [
        (lambda tags: tags, [7, 15]),
        (lambda tags: {"a": [tags, "x"], "b": 1}, {"a": [[7, 15], "x"], "b": 1}),
        (lambda tags: frozenset({frozenset(tags), frozenset({1})}), [[1], [7, 15]]),
        (lambda tags: tags | {"x"}, ["x", 15, 7]),
        (Point, {"tags": [7, 15]}),
        (lambda tags: (Labeled(tags=tags),), [{"labels": [7, 15]}]),
    ],
    ids=["a set", "in containers", "in a set", "of two types", "in a dataclass", "in a model"],
)
def test_equal_sets_become_the_same_list(made: Any, plain: Any) -> None:
    """Sorted, or by their `repr`; a set iterates in an order of its own in each process and each copy."""
    assert list(FLIPPING) != list(deepcopy(FLIPPING))
    assert jsonable(made(FLIPPING)) == jsonable(made(deepcopy(FLIPPING))) == plain


def test_a_value_without_sets_is_left_to_pydantic() -> None:
    """Models keep their aliases, dictionaries their order."""
    assert jsonable({"b": Labeled(tags=set()), "a": (1, None)}) == {"b": {"labels": []}, "a": [1, None]}
