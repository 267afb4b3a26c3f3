"""What code hands to a sub-call is bounded in what it costs the host to read."""

from __future__ import annotations

from typing import Any

import pytest

from rlm_dspy.repl.value_codec import received
from rlm_dspy.subcalls.type_grammar import TypeReader


def union(width: int) -> Any:
    names = " | ".join(f"dict[Literal['a{number}'], int]" for number in range(width))
    return TypeReader({}).read(f"list[{names}]")


def test_many_parts_that_may_be_of_many_types_are_refused() -> None:
    """Pydantic would keep 2.7 million reasons, in 800 MB."""
    with pytest.raises(ValueError, match="pass fewer items at once"):
        received(["x"] * 90_000, union(30))


def test_many_parts_of_few_types_are_read() -> None:
    """And few parts of many."""
    many = [{"a1": number} for number in range(90_000)]
    assert received(many, union(3)) == many
    assert received(many[:1_000], union(30)) == many[:1_000]
