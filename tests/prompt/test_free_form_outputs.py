"""An extraction's reply in a form of its own, a sentence say, is an answer: nothing that was paid for is lost."""

from __future__ import annotations

import enum
import json
from typing import TYPE_CHECKING, Any, Literal

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from rlm_dspy import RLM
from rlm_dspy.prompt.free_form_outputs import read_prose
from rlm_dspy.testing import CutReply, ScriptedLM
from tests.playing import block, fields

if TYPE_CHECKING:
    from tests.playing import Play


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


class Place(BaseModel):
    town: str = ""
    country: str | None = None


def of(**types: Any) -> Any:
    """Return a signature with these outputs."""
    return dspy.Signature(
        {"question": (str, dspy.InputField()), **{n: (t, dspy.OutputField()) for n, t in types.items()}}
    )


SENTENCE = "There are 42 of them, as the second page says."
READ: list[tuple[dict[str, Any], str, dict[str, Any] | None]] = [
    ({"answer": str}, SENTENCE, {"answer": SENTENCE}),
    ({"answer": str}, f"  {SENTENCE}\nAnd no more.\n", {"answer": f"{SENTENCE}\nAnd no more."}),
    ({"answer": str | None}, SENTENCE, {"answer": SENTENCE}),
    ({"answer": str}, "**Answer:** forty-two", {"answer": "forty-two"}),
    ({"answer": str}, "answer: forty-two", {"answer": "forty-two"}),
    ({"answer": str}, "## Answer\n\nforty-two\nand so on", {"answer": "forty-two\nand so on"}),
    ({"answer": str}, '{"Answer": "forty-two"}', {"answer": "forty-two"}),
    ({"answer": str}, '```json\n{"answer": "forty-two"}\n```', {"answer": "forty-two"}),
    ({"answer": str}, "[[ ## answer ## ]]\nforty-two\n\n[[ ## completed ## ]]", {"answer": "forty-two"}),
    ({"answer": str}, "```python\nSUBMIT(answer='Paris')\n```", {"answer": "Paris"}),
    ({"answer": str}, "It is clear now.\n```python\nprint(1)\nSUBMIT('Paris')\n```", {"answer": "Paris"}),
    ({"answer": str}, "SUBMIT(answer='Paris')", {"answer": "Paris"}),
    ({"answer": int, "why": str}, "SUBMIT({'answer': 2, 'why': 'so'})", {"answer": 2, "why": "so"}),
    ({"answer": int, "why": str}, "SUBMIT(2, 'so')", {"answer": 2, "why": "so"}),
    ({"answer": str}, "```python\nSUBMIT(answer=found[0])\n```", None),
    ({"answer": str}, "SUBMIT(answer=...)", None),
    ({"answer": str}, "SUBMIT(**answers)", None),
    ({"answer": str}, "SUBMIT(other='Paris')", None),
    ({"answer": str}, "Call SUBMIT when done.", {"answer": "Call SUBMIT when done."}),
    ({"answer": str}, " \n", None),
    ({"answer": int}, "42", {"answer": 42}),
    ({"answer": int}, "**42**.", {"answer": 42}),
    ({"answer": int}, "answer = 42", {"answer": 42}),
    ({"answer": int}, SENTENCE, None),
    ({"answer": float}, "`2.5`", {"answer": 2.5}),
    ({"answer": bool}, "Yes.", {"answer": True}),
    ({"answer": Literal["yes", "no"]}, "no", {"answer": "no"}),
    ({"answer": Literal["yes", "no"]}, "I would say no", None),
    ({"answer": Mood}, "good.", {"answer": Mood.GOOD}),
    ({"answer": list[str]}, '["a", "b"]', {"answer": ["a", "b"]}),
    ({"answer": list[str]}, SENTENCE, None),
    ({"answer": dict[str, int]}, SENTENCE, None),
    ({"answer": str, "count": int}, "**Answer**: many\n**Count**: 42", {"answer": "many", "count": 42}),
    ({"answer": str, "count": int}, "### answer\nmany\n### count\n42", {"answer": "many", "count": 42}),
    (
        {"answer": str, "page_number": int},
        "Answer: many\nPage number: **7**",
        {"answer": "many", "page_number": 7},
    ),
    ({"answer": str, "count": int}, "{'answer': 'many', 'count': 42}", {"answer": "many", "count": 42}),
    ({"answer": str, "count": int | None}, "**Answer**: many", {"answer": "many", "count": None}),
    ({"answer": str, "count": int}, SENTENCE, None),
    ({"answer": str, "count": int}, "**Answer**: many", None),
    ({"answer": str}, f"{block('print(x)')}\n{block('SUBMIT(answer=4)')}", {"answer": "4"}),
    ({"answer": str}, "FINAL(Kadri Vaheste)", {"answer": "Kadri Vaheste"}),
    ({"answer": int}, "FINAL(42)", {"answer": 42}),
    ({"answer": str}, 'final_answer("Kadri")', {"answer": "Kadri"}),
    ({"answer": str}, "return 'Kadri'", {"answer": "Kadri"}),
    ({"answer": str}, "return to the office", {"answer": "return to the office"}),
    ({"answer": str}, 'answer["content"] = "Kadri"', {"answer": "Kadri"}),
    ({"answer": dict[str, int]}, '{"a": 1, "b": 2}', {"answer": {"a": 1, "b": 2}}),
    ({"answer": dict[str, int]}, '```json\n{"a": 1}\n```', {"answer": {"a": 1}}),
    ({"answer": dict[str, int]}, "{}", {"answer": {}}),
    ({"answer": Place}, '{"town": "Ulm"}', {"answer": Place(town="Ulm")}),
    ({"answer": str, "count": int}, '{"town": "Ulm"}', None),
    ({"answer": str}, '{"town": "Ulm"}', {"answer": '{"town": "Ulm"}'}),
    ({"answer": str}, "FINAL_VAR(founder)", None),
    ({"answer": str}, "It is there.\n<answer>Kadri</answer>", {"answer": "Kadri"}),
    ({"answer": str}, "**Final answer:** Kadri", {"answer": "Kadri"}),
    ({"town": str}, "She said so.\nAnswer: Ulm.", {"town": "Ulm."}),
    ({"answer": str}, r"$\boxed{42}$", {"answer": "42"}),
    ({"answer": str}, r"It is \boxed{42}, as she said.", {"answer": r"It is \boxed{42}, as she said."}),
    ({"pages": int}, r"The answer is $\boxed{42}$, I think.", {"pages": 42}),
    ({"pages": int}, "**Answer:** 42", {"pages": 42}),
    ({"pages": int}, "1,234", {"pages": 1234}),
    ({"towns": list[str]}, "- Ulm\n- Bern", {"towns": ["Ulm", "Bern"]}),
    ({"towns": list[int]}, "1. 7\n2. 9", {"towns": [7, 9]}),
    ({"towns": list[str]}, "[[ ## towns ## ]]\n* Ulm\n* Bern", {"towns": ["Ulm", "Bern"]}),
    ({"answer": str}, block("town = 'Ulm'\nSUBMIT(town)"), {"answer": "Ulm"}),
    ({"answer": str, "n": int}, block("n = 3\nSUBMIT(answer='a', n=n)"), {"answer": "a", "n": 3}),
    ({"answer": str}, block("town = 'Ulm'\ntown += 'm'\nSUBMIT(town)"), None),
    ({"answer": str}, "final_answer(founder)", None),
    ({"towns": list[str]}, '<towns>\n["Ulm", "Bern"]\n</towns>', {"towns": ["Ulm", "Bern"]}),
    ({"town": str, "n": int}, "It is:\n<town>Ulm</town>\n<n>3</n>", {"town": "Ulm", "n": 3}),
    ({"town": str}, "The tags <town>a</town> hold it.", {"town": "The tags <town>a</town> hold it."}),
    ({"towns": list[str]}, "The towns are:\n\n- Ulm\n- Bern", {"towns": ["Ulm", "Bern"]}),
    ({"towns": str}, "The towns are:\n\n- Ulm\n- Bern", {"towns": "The towns are:\n\n- Ulm\n- Bern"}),
    ({"towns": list[str]}, '**[[ ## towns ## ]]**\n["Ulm"]\n\n**[[ ## completed ## ]]**', {"towns": ["Ulm"]}),
    ({"towns": list[str]}, '[[##towns##]]\n["Ulm"]\n', {"towns": ["Ulm"]}),
    ({"towns": list[str]}, '{"properties": {"towns": ["Ulm"]}}', {"towns": ["Ulm"]}),
    ({"answer": dict}, '{"result": {"answer": 1}}', {"answer": {"result": {"answer": 1}}}),
    ({"result": dict}, '{"result": {"answer": 1}}', {"result": {"answer": 1}}),
]


@pytest.mark.parametrize(("types", "text", "values"), READ)
def test_outputs_are_read_from_a_reply_in_words(
    types: dict[str, Any], text: str, values: dict[str, Any] | None
) -> None:
    """None: the outputs are not all there, and no value is made up."""
    read, problems = read_prose(of(**types), text)
    assert bool(problems) == (values is None)
    assert problems or read == values


@given(
    st.text(),
    st.sampled_from([{"answer": str}, {"answer": int}, {"answer": str, "count": int}, {"a_b": list[int]}]),
)
def test_any_text_is_read_or_refused(text: str, types: dict[str, Any]) -> None:
    values, problems = read_prose(of(**types), text)
    assert set(values) < set(types) if problems else set(values) == set(types)


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter()])
def test_a_sentence_answers_for_the_one_output_of_a_run(play: Play, adapter: Any) -> None:
    """Whatever the adapter; it may ask again for its own form first."""
    with dspy.context(adapter=adapter):
        played = play(RLM("question -> answer", max_iters=1), [block("1"), SENTENCE, SENTENCE], question="?")
    assert (played.prediction.answer, played.prediction.stop) == (SENTENCE, "extracted")


@pytest.mark.parametrize("second", ["", None, dspy.lm15.RateLimitError("busy")])
def test_a_sentence_is_kept_when_asking_for_another_form_gives_nothing(play: Play, second: Any) -> None:
    played = play(RLM("question -> answer", max_iters=1), [block("1"), SENTENCE, second], question="?")
    assert (played.prediction.answer, played.prediction.stop) == (SENTENCE, "extracted")


@pytest.mark.parametrize(
    ("output", "reply", "answer"),
    [
        ("int | None", "42", 42),
        ("int | None", '{"answer": 42}', 42),
        ("int | None", block("SUBMIT(answer=42)"), 42),
        ("str | None", SENTENCE, SENTENCE),
        ("list[str] | None", '["a"]', ["a"]),
        ("int | None", fields(answer="42"), 42),
        ("int | None", fields(answer="None"), None),
        ("str | None", fields(answer="None"), None),
        ("str | None", fields(answer="null"), None),
        ("str | None", fields(answer="None of them"), "None of them"),
    ],
)
@pytest.mark.parametrize("adapter", [dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter()])
def test_an_output_that_may_be_none_is_read_from_words_too(
    play: Play, output: str, reply: str, answer: Any, adapter: Any
) -> None:
    """DSPy's adapters give None for an output that they do not find, if its type allows that."""
    if answer is None and not isinstance(adapter, dspy.ChatAdapter):
        pytest.skip("the marks of another adapter")
    with dspy.context(adapter=adapter):
        played = play(RLM(f"question -> answer: {output}", max_iters=1), [block("1"), reply, reply], question="?")
    assert (played.prediction.answer, played.prediction.stop) == (answer, "extracted")


@pytest.mark.parametrize(("output", "reply"), [("dict[str, int]", '{"a": 1}'), ("int", "7"), ("bool", "Yes.")])
def test_a_typed_sub_that_is_answered_without_marks_is_not_asked_again(
    play: Play, output: str, reply: str
) -> None:
    """DSPy has asked it for JSON in vain; only text that could be anything is asked for again."""
    code = block(f"value = dspy.Predict('t -> n: {output}')(t='a').n\nSUBMIT(answer=str(type(value).__name__))")
    played = play(RLM("question -> answer"), ScriptedLM(lambda _: reply, act=[code]), question="?")
    (call,) = played.prediction.trajectory[0]["calls"]
    assert (played.prediction.answer, call["attempts"]) == (output.partition("[")[0], 1)


def test_a_sub_whose_output_may_be_none_is_read_from_words_too(play: Play) -> None:
    code = block("SUBMIT(answer=[count(text='a'), dspy.Predict('t -> n: int | None')(t='a').n])")
    lm = ScriptedLM(lambda _: "7", act=[code])
    rlm = RLM("question -> answer: list", subs={"count": "text -> n: int | None"})
    assert play(rlm, lm, question="?").prediction.answer == [7, 7]


def test_an_output_that_fits_is_kept_where_another_does_not(play: Play) -> None:
    reply = fields(answer="Paris", n="about three")
    played = play(RLM("question -> answer, n: int", max_iters=1), [block("1"), reply, reply], question="?")
    prediction = played.prediction
    assert (prediction.stop, prediction.answer, prediction.n) == ("unanswered", "Paris", None)


def test_no_reply_at_all_is_no_answer(play: Play) -> None:
    """An empty reply, and one of thinking alone, is not taken for words."""
    played = play(RLM("question -> answer", max_iters=1), [block("1"), "", "<think>It is 42"], question="?")
    assert (played.prediction.answer, played.prediction.stop) == (None, "unanswered")


def test_code_that_submits_is_read_and_not_taken_for_the_answer(play: Play) -> None:
    """A small model goes on as in the turns before."""
    for code, told in (("SUBMIT(answer='Paris')", ("Paris", "extracted")), ("SUBMIT(x)", (None, "unanswered"))):
        played = play(RLM("question -> answer", max_iters=1), [block("1"), *[block(code)] * 2], question="?")
        assert (played.prediction.answer, played.prediction.stop) == told


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("print('Paris')", "Paris"),
        ("answer = 'Paris'\nprint('It is', answer)", None),
        ("answer = 'Paris'\nprint(answer)", "Paris"),
        ("answer = 'Paris'", "Paris"),
        ("print(len('Paris'))", None),
        ("import re\nprint(re.findall('a', 'Paris'))", None),
        ("def double(x):\n    return 2 * x", "def double(x):\n    return 2 * x"),
    ],
)
def test_code_of_another_turn_is_no_answer_but_what_it_only_prints_is(
    play: Play, code: str, answer: str | None
) -> None:
    """Code that prints nothing may be the answer: a program that was asked for."""
    for reply in (f"```python\n{code}\n```", json.dumps({"name": "python", "arguments": {"code": code}})):
        played = play(RLM("question -> answer", max_iters=1), [block("1"), reply, reply], question="?")
        if answer is None or not answer.startswith("def"):
            assert (played.prediction.answer, bool(answer)) == (answer, played.prediction.stop == "extracted")


def test_the_code_of_an_earlier_turn_is_no_answer(play: Play) -> None:
    code = block("print('Paris')")
    assert play(RLM("question -> answer", max_iters=1), [code] * 3, question="?").prediction.answer is None


def test_code_that_submits_in_a_field_stands_for_the_fields(play: Play) -> None:
    """Under DSPy's own heading the adapter would take it for the answer."""
    for code, told in (("SUBMIT(answer='Paris')", ("Paris", "extracted")), ("SUBMIT(x)", (None, "unanswered"))):
        replies = [block("1"), *[fields(answer=code)] * 2]
        played = play(RLM("question -> answer", max_iters=1), replies, question="?")
        assert (played.prediction.answer, played.prediction.stop) == told


def test_an_ending_of_another_engine_in_a_field_is_not_the_answer(play: Play) -> None:
    for code, told in (("FINAL(Paris)", ("Paris", "extracted")), ("FINAL_VAR(x)", (None, "unanswered"))):
        replies = [block("1"), *[fields(answer=code)] * 2]
        played = play(RLM("question -> answer", max_iters=1), replies, question="?")
        assert (played.prediction.answer, played.prediction.stop) == told


def test_thinking_is_no_part_of_a_sentence(play: Play) -> None:
    replies = [block("1"), *[f"<think>\nanswer: draft\n</think>\n\n{SENTENCE}"] * 2]
    assert play(RLM("question -> answer", max_iters=1), replies, question="?").prediction.answer == SENTENCE


def test_what_there_is_of_a_cut_answer_is_given_and_told_as_cut(play: Play) -> None:
    half = fields(answer="There are 42 of").removesuffix("\n\n[[ ## completed ## ]]")
    prediction = play(
        RLM("question -> answer", max_iters=1), [block("1"), CutReply(half)], question="?"
    ).prediction
    assert (prediction.answer, prediction.stop) == ("There are 42 of", "extracted")
    assert "The reply was cut off after" in prediction.final_reasoning


def test_a_sentence_answers_for_a_sub_that_gives_nothing_else(play: Play) -> None:
    """After it was asked for its form as often as ever; a number is not made up."""
    lines = ["gist = note(text='a')", "failed = count.map(['a'])[0]", "SUBMIT(answer=[gist, bool(failed)])"]
    code = block("\n".join(lines))
    lm = ScriptedLM(lambda _: SENTENCE, act=[code])
    rlm = RLM("question -> answer: list", subs={"note": "text -> gist", "count": "text -> n: int"})
    prediction = play(rlm, lm, question="?").prediction
    assert prediction.answer == [SENTENCE, False]
    assert [call["attempts"] for call in prediction.trajectory[0]["calls"]] == [3, 3]
