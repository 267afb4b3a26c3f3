"""Inputs cross into a REPL: code has what the prompt says."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM, Text
from rlm_dspy.interpreters import PythonInterpreter
from tests.crossing import (
    CLAIM,
    OLD,
    Color,
    Level,
    Pair,
    Part,
    Point,
    Tag,
    answer,
    every_interpreter,
    run,
    signature,
)
from tests.playing import block

if TYPE_CHECKING:
    from tests.playing import Play

FACTS: list[tuple[str, Any, str, Any]] = [
    (
        "a model has attributes",
        CLAIM,
        "[x.text, x.day.year, x.parts[0].number, x.first.number]",
        ["tides rise", 2025, 1, 2],
    ),
    ("a field may be named like a method of dicts", CLAIM, "x.parts[0].items", ["a"]),
    ("a model's enum is an enum", CLAIM, "[x.color.name, x.color.value]", ["RED", "red"]),
    ("a model names its class", CLAIM, "type(x).__name__", "Claim"),
    ("a model gives pairs", CLAIM, "[name for name, value in x][:2]", ["text", "day"]),
    ("the names in a model are copied", CLAIM, "len(__import__('copy').deepcopy(list(x)))", 5),
    ("a model becomes a dict", CLAIM, "sorted(dict(x))", ["color", "day", "first", "parts", "text"]),
    ("a model is dumped", CLAIM, "x.model_dump()['parts'][0]['number']", 1),
    ("a model is dumped as JSON", CLAIM, "'2025-03-14' in x.model_dump_json()", True),
    ("a model is copied with changes", CLAIM, "x.model_copy(update={'text': 'b'}).text", "b"),
    ("a model has no field that it does not have", CLAIM, "hasattr(x, 'nothing')", False),
    ("models in lists and dicts", {"a": [CLAIM, None]}, "x['a'][0].text", "tides rise"),
    ("a dataclass has attributes", Point(1, [2]), "[x.x, x.y]", [1, [2]]),
    ("a dataclass is one", Point(1), "__import__('dataclasses').asdict(x)", {"x": 1, "y": []}),
    ("a dataclass is replaced", Point(1), "__import__('dataclasses').replace(x, x=5).x", 5),
    (
        "a namedtuple has attributes",
        Pair("a", 2),
        "[x.left, x[1], [*x], x._fields[0]]",
        ["a", 2, ["a", 2], "left"],
    ),
    ("an untyped namedtuple too", [OLD(1, 2)], "x[0].b", 2),
    (
        "an enum has a name",
        Color.BLUE,
        "[x.name, x.value, type(x).__name__, x is type(x).BLUE]",
        ["BLUE", "blue", "Color", True],
    ),
    ("an int enum is an int", Level.HIGH, "[x + 1, x.name]", [3, "HIGH"]),
    ("a str enum is a str", Tag.NEW, "[x == 'new', x.upper(), x.name]", [True, "NEW", "NEW"]),
    ("a prediction has attributes", dspy.Prediction(a=1, b="c"), "[x.a, x['b']]", [1, "c"]),
    ("a reasoning is a text", dspy.Reasoning(content="why"), "[x.upper(), x + '?', x[0]]", ["WHY", "why?", "w"]),
    ("a reasoning inside too", [dspy.Reasoning(content="why")], "x[0].upper()", "WHY"),
    ("a history has messages", dspy.History(messages=[{"q": "a"}]), "x.messages[0]['q']", "a"),
    ("a text inside", {"a": {"b": [Text("long")]}}, "x['a']['b'][0].upper()", "LONG"),
    ("a text in a tuple", (Text("long"), 1), "x[0].upper()", "LONG"),
    ("a date", [dt.date(2025, 1, 2)], "x[0].month", 1),
    ("a time span", {"a": dt.timedelta(hours=1)}, "x['a'].total_seconds()", 3600.0),
    ("a decimal", [Decimal("1.5")], "str(x[0] + 1)", "2.5"),
    ("bytes", b"\xff\x00", "x[0]", 255),
    ("a set", [{1, 2}], "3 in x[0] or 2 in x[0]", True),
    ("a tuple", [(1, 2)], "isinstance(x[0], tuple)", True),
    ("keys that are no str", {3: "a", (1, 2): "b"}, "[x[3], x[1, 2]]", ["a", "b"]),
    ("keys that look like ours", {"__record__": "Claim", "__type__": 1}, "sorted(x)", ["__record__", "__type__"]),
    ("what is no number", [float("nan"), float("inf")], "[x[0] != x[0], x[1] > 1]", [True, True]),
]


@every_interpreter
@pytest.mark.parametrize(("value", "expression", "expected"), [f[1:] for f in FACTS], ids=[f[0] for f in FACTS])
def test_an_input_arrives_as_the_object_that_it_is(
    factory: Any, value: Any, expression: str, expected: Any
) -> None:
    """In every interpreter: code has what the prompt says."""
    assert answer(factory, expression, x=value) == expected


@pytest.mark.parametrize("factory", [PythonInterpreter, dspy.LocalInterpreter])
def test_what_stands_for_an_object_is_also_a_dict(factory: Any) -> None:
    """For code that expects JSON."""
    code = """
import copy, json
y = copy.deepcopy(x)
y.text = 'b'
dumped = json.loads(json.dumps(x.model_dump(mode='json')))
SUBMIT(answer=[x['text'], dumped['color'], 'text' in x, y['text'], x == dict(x), sorted(vars(x))[0]])
"""
    assert run(factory, code, {"x": CLAIM}).answer == ["tides rise", "red", True, "b", True, "color"]


def test_a_frame_of_records_can_be_made() -> None:
    """Iteration gives names that unpack into pairs."""
    code = "import pandas\nSUBMIT(answer=[list(pandas.DataFrame(x).columns), [dict(c)['number'] for c in x]])"
    parts = [Part(number=1), Part(number=2)]
    assert run(PythonInterpreter, code, {"x": parts}).answer == [["number", "items"], [1, 2]]


def test_what_the_prompt_shows_of_an_object_is_its_repr(play: Play) -> None:
    """The same on the host and in a REPL of its own."""
    prediction = run(PythonInterpreter, "print(repr(x))\nSUBMIT(answer=1)", {"x": CLAIM})
    played = play(RLM(signature({"x": 1})), [block("SUBMIT(answer=1)")], x=CLAIM)
    assert prediction.trajectory[0]["output"].splitlines()[0] in played.calls[0][-1]["content"]


def test_a_dataclass_that_is_asked_for_is_told_with_its_fields(play: Play) -> None:
    """As models are."""
    rlm = RLM(signature({"x": 1}, answer=list[Point], pair=Pair))
    played = play(rlm, [block("SUBMIT(answer=[{'x': 1}], pair=('a', 2))")], x=1)
    told = played.calls[0][-1]["content"]
    assert "Point is a dict with x: int, y: list[int]" in told
    assert "Pair is a dict with left: str, right: int" in told
    assert (played.prediction.answer, played.prediction.pair) == ([Point(1)], Pair("a", 2))


def test_big_inputs_cross_without_being_looked_through() -> None:
    """A million numbers beside a model: no value of Python's own is touched for it."""
    big = list(range(1_000_000))
    assert answer(PythonInterpreter, "[len(x), x[-1], y[0].text]", x=big, y=[CLAIM]) == [
        10**6,
        10**6 - 1,
        "tides rise",
    ]


@pytest.mark.parametrize("value", [(n for n in "ab"), memoryview(b"ab")], ids=lambda value: type(value).__name__)
def test_an_input_that_cannot_enter_a_process_is_refused_with_what_to_pass(value: Any) -> None:
    """The reason of pickle alone says nothing to do."""
    with pytest.raises(dspy.CodeInterpreterError, match=r"cannot enter .*; pass plain data, such as a list"):
        run(PythonInterpreter, "SUBMIT(answer=1)", {"x": value})


class Mine(dict[str, Any]):
    """A dict of the host's own class, as YAML readers return."""


class Piece(str):
    """A str of the host's own class, as readers of HTML return."""

    __slots__ = ()


class Items(list[Any]):
    """A list of the host's own class."""


class Count(int):
    """An int of the host's own class."""


@every_interpreter
def test_what_a_class_of_the_hosts_extends_enters_in_its_place(factory: Any) -> None:
    """A value of a class that the worker does not have, at any depth."""
    given = Mine(a=Items([Piece("text"), Count(3)]), b={Piece("key"): [Piece("x")]})
    expected = [{"a": ["text", 3], "b": {"key": ["x"]}}, "TEXT", 4]
    assert answer(factory, "[x, x['a'][0].upper(), x['a'][1] + 1]", x=given) == expected
