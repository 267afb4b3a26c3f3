"""What a model is told of long values, to the letter: prompts, refusals and demos rest on these forms."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

from rlm_dspy import Text
from rlm_dspy.errors import InvalidInputs
from rlm_dspy.inputs import describe
from rlm_dspy.optimize import demos
from rlm_dspy.optimize.upstream import shown
from rlm_dspy.repl.coercion import read_value
from rlm_dspy.repl.value_codec import short
from rlm_dspy.subcalls.type_grammar import check_name
from rlm_dspy.text import beginning, clip, cut
from rlm_dspy.trajectory import Step, Trajectory

LONG = "".join(f"{number:04}" for number in range(500))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (LONG, f"v: str, 2,000 characters: {LONG[:160]} ... [1,760 characters left out] ... {LONG[-80:]}"),
        (Text(LONG), f"v: str, 2,000 characters: {LONG[:160]} ... [1,760 characters left out] ... {LONG[-80:]}"),
        (LONG[:400], f"v: str, {LONG[:400]!r}"),
        (list(range(30)), f"v: list, 30 items, [{', '.join(map(str, range(20)))}, ... [left out] ...]"),
        ([LONG], f"v: list, 1 items, ['{LONG[:80]}' ... [left out] ... '{LONG[-80:]}']"),
        (dict.fromkeys(range(9), LONG), None),
        (10**50, f"v: int, {10**50}"),
    ],
)
def test_an_input_is_described_by_its_ends(value: Any, told: str | None) -> None:
    line = str(describe("v", value))
    if told is None:
        assert line.startswith("v: dict, 9 items, {0: '00000001")
        assert line.endswith("0498049" + "9'}")
        assert len(line) == len("v: dict, 9 items, ") + 160 + len(" ... [1,582 characters left out] ... ") + 80
    else:
        assert line == told


def test_an_answer_that_does_not_fit_is_told_by_its_beginning() -> None:
    with pytest.raises(ValueError, match="expected int") as caught:
        read_value(f"x{LONG}", int)
    assert f"got str 'x{LONG[:118]}..." in str(caught.value)


def test_a_name_that_is_refused_is_told_by_its_beginning() -> None:
    with pytest.raises(InvalidInputs) as caught:
        check_name(f"!{LONG}", "a field")
    assert f"Invalid name of a field: {'!' + LONG[:59] + '...'!r};" in str(caught.value)


@pytest.mark.parametrize("more", range(60))
def test_a_shortened_text_is_never_longer_than_the_text(more: int) -> None:
    text = LONG[: 90 + more]
    assert len(clip(text, 90)) <= len(text)
    assert len(beginning(text, 90)) <= len(text)


def test_a_text_is_cut_to_head_and_tail_with_a_note() -> None:
    assert clip(LONG, 90) == f"{LONG[:60]}\n... [1,910 characters left out] ...\n{LONG[-30:]}"
    assert cut(LONG, 150) == clip(LONG, 90)
    assert (clip(LONG, 2_000), cut(LONG, 2_000)) == (LONG, LONG)


def test_a_value_of_a_sub_call_is_kept_short() -> None:
    assert short(LONG, 90) == clip(LONG, 90)
    assert short([LONG], 500) == f"['{LONG[:97]}...{LONG[-98:]}']"
    assert short(list(range(30)), 500) == f"[{', '.join(map(str, range(20)))}, ...]"


def test_a_model_that_reflects_is_shown_short_plain_data() -> None:
    assert shown({"a": [LONG] * 100, 1: Text(LONG)}) == {"a": [cut(LONG, 1_000)] * 12, "1": repr(Text(LONG))}
    steps = Trajectory(steps=(Step(code="x", output="y", notice="z"),))
    assert shown(steps) == [{"code": "x", "output": "y\n\nz"}]


def test_the_inputs_of_a_demo_are_cut() -> None:
    demo = demos.from_call({"a": LONG, "b": [LONG] * 9, "c": 1}, dspy.Prediction(d=1), 1.0)
    assert demo.example.a == cut(LONG, 400)
    assert demo.example.b == [cut(LONG, 100)] * 4
    assert demo.example.c == 1
