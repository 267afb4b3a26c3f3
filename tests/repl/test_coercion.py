"""Submitted values are read into the signature's types; what is wrong is told field by field."""

from __future__ import annotations

import datetime as dt
import enum
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from rlm_dspy import RLM
from rlm_dspy.prompt.free_form_outputs import read_prose
from rlm_dspy.repl.coercion import read_answer, read_value
from tests.playing import block

if TYPE_CHECKING:
    from tests.playing import Play


class Mood(enum.Enum):
    CALM = "calm"
    TENSE = "tense"


class Feeling(BaseModel):
    mood: Mood
    sure: Literal["yes", "no"] = "no"


class Grade(enum.Enum):
    LOW = 1
    HIGH = 2


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Claim(BaseModel):
    text: str
    year: int
    tags: list[str] = []


class Bounded(BaseModel):
    share: float = Field(ge=0, le=1)


@dataclass
class Row:
    """Stands for a class that the REPL's code made."""

    text: str
    year: int


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Array:
    """Has what numpy's arrays have."""

    def tolist(self) -> list[int]:
        return [1, 2]


CLAIM = Claim(text="t", year=2025)


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        ("42", int, 42),
        (" 42 ", int, 42),
        (3, float, 3.0),
        ("0.5", float, 0.5),
        (42, str, "42"),
        (Mood.CALM, str, "calm"),
        ("true", bool, True),
        ("2", Grade, Grade.HIGH),
        ("2", Level, Level.HIGH),
        ("Grade.HIGH", Grade, Grade.HIGH),
        ("high", Grade | None, Grade.HIGH),
        ("TENSE", Mood | None, Mood.TENSE),
        ("Tense", Mood | None, Mood.TENSE),
        ("Mood.TENSE", Mood | int, Mood.TENSE),
        ("a", Literal["a", "b"], "a"),
        ("'a'", Literal["a", "b"], "a"),
        (" Yes\n", Literal["yes", "no"], "yes"),
        ("NO", Literal["yes", "no"] | None, "no"),
        ("2", Literal[1, 2], 2),
        ("calm", Mood, Mood.CALM),
        ("CALM", Mood, Mood.CALM),
        (Mood.CALM, Mood, Mood.CALM),
        (["calm", Mood.TENSE], list[Mood], [Mood.CALM, Mood.TENSE]),
        ("2025-03-14", dt.date, dt.date(2025, 3, 14)),
        ("20250314", dt.date, dt.date(2025, 3, 14)),
        (20250314, dt.datetime, dt.datetime.fromisoformat("2025-03-14")),
        (1_741_964_966, dt.datetime, dt.datetime(2025, 3, 14, 15, 9, 26, tzinfo=dt.UTC)),
        (["2025-03-14"], list[dt.date], [dt.date(2025, 3, 14)]),
        ("1,234,567", int, 1_234_567),
        (["1,234"], list[int], [1234]),
        ("- a\n- b c", list[str], ["a", "b c"]),
        ("2025-03-14T15:09:26", dt.datetime, dt.datetime.fromisoformat("2025-03-14T15:09:26")),
        (dt.date(2025, 3, 14), dt.date, dt.date(2025, 3, 14)),
        ('["a", "b"]', list[str], ["a", "b"]),
        ("['a', 'b']", list[str], ["a", "b"]),
        (("a", "b"), list[str], ["a", "b"]),
        ({"a"}, list[str], ["a"]),
        (Array(), list[int], [1, 2]),
        ({"a": "1"}, dict[str, int], {"a": 1}),
        ('{"a": 1}', dict[str, int], {"a": 1}),
        ({"text": "t", "year": "2025"}, Claim, CLAIM),
        ('{"text": "t", "year": 2025}', Claim, CLAIM),
        (CLAIM, Claim, CLAIM),
        (Row("t", 2025), Claim, CLAIM),
        ([Row("t", 2025), {"text": "t", "year": 2025}], list[Claim], [CLAIM, CLAIM]),
        (None, Optional[int], None),  # noqa: UP045 (signatures are also written so)
        ("null", int | None, None),
        ("7", int | None, 7),
        ("7", str | None, "7"),
        ({"any": [1]}, Any, {"any": [1]}),
        (["TENSE", "calm"], list[Mood], [Mood.TENSE, Mood.CALM]),
        ('["TENSE"]', list[Mood], [Mood.TENSE]),
        ({"Tense"}, set[Mood], {Mood.TENSE}),
        (["Yes"], list[Literal["yes", "no"]], ["yes"]),
        ({"a": ["TENSE"], "b": []}, dict[str, list[Mood]], {"a": [Mood.TENSE], "b": []}),
        (["TENSE", "TENSE"], tuple[Mood, str], (Mood.TENSE, "TENSE")),
        ({"mood": "TENSE", "sure": "Yes"}, Feeling, Feeling(mood=Mood.TENSE, sure="yes")),
        ([{"mood": "TENSE"}], list[Feeling] | None, [Feeling(mood=Mood.TENSE)]),
        (['{"mood": "TENSE"}'], list[Feeling], [Feeling(mood=Mood.TENSE)]),
    ],
)
def test_a_value_is_read_into_its_type(value: Any, annotation: Any, expected: Any) -> None:
    """Strings are read leniently, objects of the REPL's own classes by their fields."""
    found = read_value(value, annotation)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation", "told"),
    [
        ("forty-two", int, "expected int, got str 'forty-two'"),
        (3.7, int, "expected int, got float 3.7"),
        (None, str, "expected str, got NoneType None"),
        (["a"], str, "expected str, got list"),
        (b"a", str, "expected str, got bytes"),
        ("maybe", Literal["a", "b"], "Literal['a', 'b']"),
        ("yes", Literal["Yes", "YES"], "Literal['Yes', 'YES']"),
        ("12,34", int, "write it like 1234"),
        ("1,234", float, "write it like 12.5"),
        (2024, dt.datetime, "write it like '2025-03-14T09:30:00'"),
        ("2024", dt.datetime | None, "write it like '2025-03-14T09:30:00'"),
        (0, dt.date, "write it like '2025-03-14'"),
        (14, dt.time, "write it like '09:30:00'"),
        ([1999, 2001], list[dt.datetime], "expected list[datetime]"),
        ({"a": "1999"}, dict[str, list[dt.date] | dt.date], "expected dict"),
        ("12%", float, "write it like 12.5"),
        ("half past nine", dt.time | None, "write it like '09:30:00'"),
        ("3/4/2025", dt.date, "write it like '2025-03-14'"),
        ("calm", list[Mood], "expected list[Mood]"),
        ("angry", Mood, "expected Mood, got str 'angry' (Input should be 'calm' or 'tense')"),
        ("angry", Mood | None, "Input should be 'calm' or 'tense'"),
        (["calm", "angry"], list[Mood], "1: Input should be 'calm' or 'tense'"),
        ('{"text": "t"}', Claim, "year: Field required"),
        ("14 March", dt.date, "expected date, got str"),
        ({"text": "t"}, Claim, "year: Field required"),
        ([{"text": "t", "year": 1}, {"text": "t", "year": "x"}], list[Claim], "1.year"),
        ({"share": 2}, Bounded, "share: Input should be less than or equal to 1"),
        ([1, "x"], list[int], "1: Input should be a valid integer"),
        (Unprintable(), int, "expected int, got Unprintable"),
        ("x" * 10_000, int, "expected int, got str 'xxx"),
    ],
)
def test_a_value_that_does_not_fit_is_told_with_what_is_needed_and_given(
    value: Any, annotation: Any, told: str
) -> None:
    """The message is short, names both types, and goes into the parts."""
    with pytest.raises(ValueError, match=r"^expected") as caught:
        read_value(value, annotation)
    assert told in str(caught.value)
    assert len(str(caught.value)) < 500


FITTING: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: st.text(),
    bool: st.booleans(),
    dt.date: st.dates(),
    list[int]: st.lists(st.integers()),
    list[str]: st.lists(st.text()),
    dict[str, float]: st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False)),
    int | None: st.none() | st.integers(),
    str | None: st.none() | st.text(),
    list[dt.date]: st.lists(st.dates()),
    Mood: st.sampled_from(Mood),
    dict[str, list[int] | None]: st.dictionaries(st.text(), st.none() | st.lists(st.integers())),
}
TYPED = st.sampled_from(list(FITTING)).flatmap(lambda kind: st.tuples(st.just(kind), FITTING[kind]))


@given(TYPED)
def test_a_value_of_the_type_comes_back_as_it_is(typed: tuple[Any, Any]) -> None:
    """Reading changes nothing that fits already."""
    annotation, value = typed
    found = read_value(value, annotation)
    assert found == value
    assert type(found) is type(value)


SMALL = st.integers(-(2**53), 2**53)


@given(
    st.one_of(
        st.tuples(st.just(list[int]), st.lists(SMALL)),
        st.tuples(st.just(int), SMALL),
        st.tuples(st.just(bool), st.booleans()),
    )
)
def test_the_json_of_a_value_is_read_as_the_value(typed: tuple[Any, Any]) -> None:
    """Code that submits `json.dumps(value)` submits the value."""
    annotation, value = typed
    assert read_value(json.dumps(value), annotation) == value


@given(
    st.sampled_from(list(FITTING)),
    st.one_of(st.text(), st.integers(), st.lists(st.text()), st.none(), st.binary()),
)
def test_reading_gives_a_value_or_a_value_error(annotation: Any, value: Any) -> None:
    """No submitted value ends a run."""
    try:
        read_value(value, annotation)
    except ValueError as error:
        assert str(error).startswith("expected")  # noqa: PT017 (a ValueError is one of two right answers)


class Report(dspy.Signature):
    """Report."""

    q: str = dspy.InputField()
    title: str = dspy.OutputField()
    claims: list[Claim] = dspy.OutputField()
    mood: Mood | None = dspy.OutputField()
    pages: int = dspy.OutputField(default=1)


def test_defaults_and_optional_fields_may_be_left_out() -> None:
    """The default where there is one, else None."""
    values, problems = read_answer(Report, {"title": "T", "claims": []})
    assert problems == []
    assert values == {"title": "T", "claims": [], "mood": None, "pages": 1}


def test_every_field_that_is_wrong_is_named() -> None:
    """Missing, unknown and misfit fields are told together; what fits is kept."""
    values, problems = read_answer(Report, {"claims": [{"text": 1}], "colour": "red", "pages": "3"})
    assert values["pages"] == 3
    assert [problem.split(":")[0] for problem in problems] == ["colour", "title", "claims"]
    assert "no such output field" in problems[0]
    assert problems[1] == "title: missing (str)"
    assert "0.year: Field required" in problems[2]


@pytest.mark.parametrize("submitted", [5, {"n": 5}, "5"])
def test_a_single_output_takes_the_bare_value(submitted: Any) -> None:
    """An interpreter may give the value or a dict of it."""
    assert read_answer(dspy.Signature("q -> n: int"), submitted) == ({"n": 5}, [])


def test_a_single_output_that_is_a_dict_takes_the_bare_dict() -> None:
    """A dict without the field's name is the value."""
    signature = dspy.Signature("q -> counts: dict[str, int]")
    assert read_answer(signature, {"a": 1}) == ({"counts": {"a": 1}}, [])
    assert read_answer(signature, {"counts": {"a": 1}}) == ({"counts": {"a": 1}}, [])


def test_several_outputs_given_as_no_dict_are_all_missing() -> None:
    """What is no dict of fields is refused with every field named."""
    _, problems = read_answer(dspy.Signature("q -> a, b"), ["x", "y"])
    assert problems == ["a: missing (str)", "b: missing (str)"]


def test_a_refused_submit_is_told_field_by_field_and_the_run_goes_on(play: Play) -> None:
    """The model corrects it in the next turn."""
    replies = [
        block("print('counted')\nSUBMIT(title=['T'], claims=[{'text': 'c'}], mood='calm', pages=2)"),
        block("SUBMIT(title='T', claims=[{'text': 'c', 'year': 2025}], mood='calm', pages=2)"),
    ]
    played = play(RLM(Report), replies, q="?")
    assert played.kinds == ["refused", "submitted"]
    told = played.outputs[0].splitlines()
    assert told[0] == "counted"
    assert told[1] == "SUBMIT was refused:"
    assert told[2].startswith("- title: expected str, got list")
    assert told[3].startswith("- claims: expected list[Claim]")
    assert told[4] == "Fix this and call SUBMIT(title=..., claims=..., mood=..., pages=...) again."
    assert played.prediction.claims == [Claim(text="c", year=2025)]
    assert played.prediction.mood is Mood.CALM


def test_a_submit_of_wrong_fields_says_how_it_is_called(play: Play) -> None:
    """A field too many or too few is an observation."""
    replies = [block("SUBMIT(colour='red')"), block("SUBMIT()"), block("SUBMIT(answer='a')")]
    played = play(RLM("question -> answer"), replies, question="?")
    assert played.kinds[2] == "submitted"
    for output in played.outputs[:2]:
        assert "SUBMIT(answer=...)" in output


def test_a_submit_through_json_is_typed_as_well(play: Play) -> None:
    """DSPy's own interpreter, where values cross as JSON, gives the same answer."""
    outputs = {"days": (list[dt.date], dspy.OutputField()), "claim": (Claim, dspy.OutputField())}
    signature = dspy.Signature({"q": (str, dspy.InputField()), **outputs})
    rlm = RLM(signature, interpreter_factory=dspy.LocalInterpreter)
    code = "SUBMIT(days=['2025-03-14'], claim={'text': 't', 'year': 2025})"
    pred = play(rlm, [block(code)], q="?").prediction
    assert (pred.days, pred.claim) == ([dt.date(2025, 3, 14)], CLAIM)


def test_objects_of_classes_that_the_code_defines_are_read_by_their_fields(play: Play) -> None:
    """A dataclass or a plain class of the REPL serves for a model of the signature."""
    code = """
        from dataclasses import dataclass
        @dataclass
        class Claim:
            text: str
            year: int
        SUBMIT(claim=Claim('t', 2025))
    """
    signature = dspy.Signature({"q": (str, dspy.InputField()), "claim": (Claim, dspy.OutputField())})
    code = "\n".join(line[8:] for line in code.splitlines()).strip()
    assert play(RLM(signature), [block(code)], q="?").prediction.claim == CLAIM


BOTTOMLESS = ["[" * 5_000, "(" * 5_000, "-" * 20_000 + "1", '{"x":' * 5_000]


@pytest.mark.parametrize("text", BOTTOMLESS)
def test_a_text_of_brackets_without_end_is_no_value(play: Play, text: str) -> None:
    """It is refused like any other; the parsers' own errors do not end the run."""
    for kind in (int, list[int], dict[str, list[int]], Claim):
        with pytest.raises(ValueError, match="expected"):
            read_value(text, kind)
    replies = [block(f"SUBMIT(n={text!r})"), block("SUBMIT(n=[1])")]
    played = play(RLM("q -> n: list[int]"), replies, q="?")
    assert (played.kinds, played.prediction.n) == (["refused", "submitted"], [1])


def test_a_long_text_is_read_as_valid_json_alone() -> None:
    """Repairing a million open braces would take hours on the host."""
    with pytest.raises(ValueError, match="expected"):
        read_value("{" * 1_000_000, dict[str, int])
    assert read_value(json.dumps(list(range(10_000))), list[int]) == list(range(10_000))


@pytest.mark.parametrize("head", ["", "[[ ## n ## ]]\n"])
@pytest.mark.parametrize("text", BOTTOMLESS)
def test_an_extraction_of_brackets_without_end_leaves_the_run_unanswered(play: Play, text: str, head: str) -> None:
    """What was done and paid is not lost with it."""
    played = play(RLM("q -> n: list[int]", max_iters=1), [block("print(1)"), *[head + text] * 3], q="?")
    assert (played.prediction.stop, played.prediction.n, played.kinds) == ("unanswered", None, ["output"])


@pytest.mark.parametrize("text", ["-" * 20_000 + "1", "> " * 10_000, "# " * 10_000, "**" * 10_000, "_`" * 10_000])
def test_a_reply_of_marks_is_read_in_no_time(text: str) -> None:
    """A pattern that tries every way to split them would take for ever."""
    begun = time.thread_time()
    read_prose(dspy.Signature("q -> answer: list[int], n: int"), text)
    assert time.thread_time() - begun < 10


def test_of_very_many_problems_only_the_number_is_told() -> None:
    """Pydantic would list each, in 1 KB."""
    kinds: tuple[Any, ...] = (list[int], Annotated[list[int], Field(min_length=1)])
    for kind in kinds:
        with pytest.raises(ValueError, match=r"expected|2,000 values are invalid") as caught:
            read_value(["x"] * 2_000, kind)
        assert "valid integer" not in str(caught.value)
        with pytest.raises(ValueError, match="valid integer"):
            read_value(["x"] * 20, kind)
