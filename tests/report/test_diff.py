"""Two runs side by side: what differs is told, and turns that are alike stand together."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rlm_dspy.report.diff import aligned, diff_html, diff_text
from rlm_dspy.report.record import Record
from rlm_dspy.trajectory import Step
from tests.report.test_report import ATTACK, Page, assert_inert, attacked, record

STEPS = st.lists(
    st.builds(Step, code=st.sampled_from(["a = 1", "b = 2", "print(a, b)", "", "for x in y: go(x)"])), max_size=7
)


def steps(*codes: str) -> list[Step]:
    return [Step(code=code, output=f"out of {code}") for code in codes]


def other(**fields: Any) -> Record:
    return record(trajectory=steps("print(context[:10])", "SUBMIT('Bob')"), **fields)


def test_a_run_is_the_same_as_itself() -> None:
    lines = diff_text(record(), record()).splitlines()
    assert [line for line in lines if line.endswith("the same")][:2] == ["asked: the same", "answered: the same"]
    assert lines[-2:] == ["  a 1 = b 1: the same", "  a 2 = b 2: the same"]
    assert not any("->" in line for line in lines)


def test_settings_answers_and_usage_that_differ_are_told() -> None:
    text = diff_text(
        record(),
        other(model="another", outputs={"answer": "Bob"}, usage={"input_tokens": 7}),
        ("one.json", "two.json"),
    )
    for told in (
        *(
            "a: one.json",
            "b: two.json",
            "  model\n    a scripted/lm\n    b another",
            "  answer\n    a Ada\n    b Bob",
        ),
        *('  names\n    a {"Ada": [1]}\n    b ', "tokens in: 300 -> 7", "turns: 2\n", "time: 3.0 s -> 0.0 s"),
    ):
        assert told in text


def test_a_turn_that_one_run_has_more_does_not_shift_the_others() -> None:
    a = steps(
        "import re", "raise ValueError('no such group here')", "hits = re.findall('x', context)", "SUBMIT(hits)"
    )
    b = steps("import re", "hits = re.findall('y', context)", "SUBMIT(hits)")
    assert aligned(a, b) == [(0, 0), (1, None), (2, 1), (3, 2)]
    assert aligned(b, a) == [(0, 0), (None, 1), (1, 2), (2, 3)]


def test_turns_that_have_nothing_in_common_are_no_pair() -> None:
    assert aligned(steps("alpha beta gamma"), steps("one two three")) == [(0, None), (None, 0)]


@given(STEPS, STEPS)
def test_every_turn_of_both_runs_stands_once_and_in_order(a: list[Step], b: list[Step]) -> None:
    pairs = aligned(a, b)
    assert [i for i, _ in pairs if i is not None] == list(range(len(a)))
    assert [j for _, j in pairs if j is not None] == list(range(len(b)))


def test_the_page_marks_the_lines_that_only_one_has() -> None:
    a = record(trajectory=steps("x = 1\ny = 2\nprint(x)"))
    b = record(trajectory=steps("x = 1\ny = 3\nprint(x)"))
    page = Page(diff_html(a, b))
    assert [name for name, _ in page.elements if name in {"ins", "del"}] == ["del", "ins"]
    assert "y = 2" in page.text
    assert "y = 3" in page.text


def test_turns_that_are_the_same_are_folded() -> None:
    page = Page(diff_html(record(), record()))
    assert "Turn 1 and turn 1 are identical" in page.text
    assert not [name for name, _ in page.elements if name in {"ins", "del"}]


def test_the_page_has_what_the_models_thought_folded_shut() -> None:
    thoughtful = [Step(thinking="I wonder.", code="x")]
    page = Page(diff_html(record(trajectory=thoughtful), record()))
    assert [attributes for _, attributes in page.elements if attributes.get("class") == "thinking"] == [
        {"class": "thinking"}
    ]
    assert "I wonder." in page.text


def test_the_page_is_inert() -> None:
    assert_inert(diff_html(attacked(ATTACK), attacked(ATTACK + "<b>"), (ATTACK, ATTACK)))


def test_runs_without_turns_or_answers_can_be_compared() -> None:
    empty = Record(signature="a -> b", inputs={}, model="m", stop="failed", error="no key")
    assert "turns: 2 -> 0" in diff_text(record(), empty)
    assert "no key" in Page(diff_html(record(), empty)).text
