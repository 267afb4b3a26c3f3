"""`SubCallCache`: what it keeps, and by which keys answers are found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dspy
import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict

from rlm_dspy import SubCallCache
from rlm_dspy.cache.sub_call_cache import digest
from rlm_dspy.redaction import lm_state
from tests.asking import QUESTIONS, Counting, never, run_all

if TYPE_CHECKING:
    from pathlib import Path


def test_what_is_not_json_goes_to_who_asked(tmp_path: Path) -> None:
    """It is paid for; it is not kept."""
    cache = SubCallCache(tmp_path / "answers.db")
    odd = object()
    assert cache.once("a", lambda: odd) == (odd, False)
    assert cache.once("a", lambda: 1) == (1, False)


def test_a_changed_answer_does_not_change_what_is_kept() -> None:
    """Each has a copy of its own."""
    cache = SubCallCache()
    answer, _ = cache.once("a", lambda: [1])
    answer.append(2)
    again, _ = cache.once("a", never)
    again.append(3)
    assert cache.once("a", never) == ([1], True)


def test_a_key_that_was_changed_finds_the_answers_of_the_old_one(tmp_path: Path) -> None:
    """An answer does not depend on who pays for it."""
    path, keys = tmp_path / "answers.db", ("sk-old-0123456789", "sk-new-0123456789")
    with Counting() as server:
        for key in keys:
            run_all(path, server.url, tmp_path / "log", QUESTIONS[:3], key)
        assert [server.requests[question] for question in QUESTIONS[:3]] == [1, 1, 1]
    assert b"sk-" not in path.read_bytes()


def test_keys_and_headers_of_a_model_are_no_part_of_what_is_asked() -> None:
    """Its options are."""
    one, other, warm = (
        dspy.LM("openai/m", extra_headers={"Authorization": name}, temperature=temperature)
        for name, temperature in (("a", 0.0), ("b", 0.0), ("a", 1.0))
    )
    assert lm_state(one) == lm_state(other) != lm_state(warm)


def test_equal_inputs_have_equal_keys() -> None:
    """Whatever order they were made in."""
    assert digest({0, 8}) == digest({8, 0})
    assert digest({1: 2, "a": 3, None: 4}) == digest({None: 4, "a": 3, 1: 2})


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class _Point:
    def __init__(self, x: int) -> None:
        self.x = x

    def __repr__(self) -> str:
        return "a point"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({1: "a"}, {"1": "a"}),
        (np.arange(10_000), np.where(np.arange(10_000) == 5_000, 0, np.arange(10_000))),
        (_Point(1), _Point(2)),
        (b"a", "b'a'"),
        ({"a"}, ["a"]),
        (dspy.Image(url="http://a/1.png"), dspy.Image(url="http://a/2.png")),
        (True, 1),
        (_Open.model_validate({"x": 1}), _Open.model_validate({"x": 2})),
    ],
)
def test_unlike_inputs_have_unlike_keys(one: Any, other: Any) -> None:
    """Also where their reprs are equal: an answer about one is none about the other."""
    assert digest(one) != digest(other)
    assert digest(one) == digest(one)


def test_inputs_of_any_depth_have_a_key() -> None:
    """A depth that nothing can compare."""
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert digest(deep)
