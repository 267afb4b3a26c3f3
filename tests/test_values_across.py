"""Values across the border of a REPL: code has what the prompt says, and what it gives arrives."""

from __future__ import annotations

import datetime as dt
import enum
from collections import namedtuple
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

import dspy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from rlm_dspy import RLM, Limits, SubCallCache, Text
from rlm_dspy.cache import digest
from rlm_dspy.crossing import Media, described, sent, taken
from rlm_dspy.function_lm import FunctionLM
from rlm_dspy.inputs import Record, Row
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.testing import ScriptedLM
from tests.playing import block, fields

if TYPE_CHECKING:
    from rlm_dspy.testing import Messages
    from tests.playing import Play

FACTORIES = [PythonInterpreter, LocalPythonInterpreter, dspy.LocalInterpreter]
every_interpreter = pytest.mark.parametrize("factory", FACTORIES)
PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9"
    "awAAAABJRU5ErkJggg=="
)


class Color(enum.Enum):
    """A plain enum."""

    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    """One of numbers."""

    LOW = 1
    HIGH = 2


class Tag(str, enum.Enum):  # noqa: UP042 (as many still write it)
    """One of texts."""

    NEW = "new"


class Part(BaseModel):
    """Inside a claim."""

    number: int
    items: list[str] = []


class Claim(BaseModel):
    """A model."""

    text: str
    day: dt.date = dt.date(2025, 3, 14)
    color: Color = Color.RED
    parts: list[Part] = []
    first: Part | None = None


@dataclass(frozen=True)
class Point:
    """A dataclass."""

    x: int
    y: list[int] = field(default_factory=list, compare=False)


class Pair(NamedTuple):
    """A namedtuple."""

    left: str
    right: int


CLAIM = Claim(text="tides rise", parts=[Part(number=1, items=["a"])], first=Part(number=2))
OLD = namedtuple("OLD", "a b")  # noqa: PYI024 (as many still write it)


class See(dspy.Signature):
    """Say what is to be seen."""

    image: dspy.Image = dspy.InputField()
    label: str = dspy.OutputField()


class Judge(dspy.Signature):
    """Judge a claim."""

    claim: Claim = dspy.InputField()
    point: Point | None = dspy.InputField(default=None)
    label: str = dspy.OutputField()


def signature(inputs: dict[str, Any], **outputs: Any) -> Any:
    """Return a signature of these inputs, untyped, and of outputs of these types."""
    made: dict[str, Any] = {name: (Any, dspy.InputField()) for name in inputs}
    made |= {name: (kind, dspy.OutputField()) for name, kind in (outputs or {"answer": Any}).items()}
    return dspy.Signature(made)


def run(
    factory: Any, code: str, inputs: dict[str, Any], *, tools: Any = (), lm: Any = None, **outputs: Any
) -> Any:
    """Return the prediction of a run of one block, which must submit."""

    def reply(messages: Messages) -> str:
        if "Write one ```python block" in str(messages[1]["content"]):
            return block(code)
        return fields(label="a label") if "label" in messages[0]["content"] else "an answer"

    rlm = RLM(
        signature(inputs, **outputs),
        interpreter_factory=factory,
        tools=list(tools),
        subs={"see": See, "judge": Judge},
        max_iters=1,
    )
    with dspy.context(lm=lm or ScriptedLM(reply)):
        prediction = rlm(**inputs)
    assert prediction.stop == "submitted", prediction.trajectory[0]["output"]
    return prediction


def answer(factory: Any, expression: str, **inputs: Any) -> Any:
    """Return what an expression is in a REPL with these inputs."""
    return run(factory, f"SUBMIT(answer={expression})", inputs).answer


# In


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
    ("a history has messages", dspy.History(messages=[{"q": "a"}]), "x.messages[0]['q']", "a"),
    ("a text inside", {"a": {"b": [Text("long")]}}, "x['a']['b'][0].upper()", "LONG"),
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


# Out


MADE_IN_THE_REPL = """
import dataclasses, datetime, decimal, enum, typing
class Color(enum.Enum):
    RED = 'red'
@dataclasses.dataclass
class Part:
    number: int
    items: list = dataclasses.field(default_factory=list)
class Pair(typing.NamedTuple):
    left: str
    right: int
class Plain:
    def __init__(self, number):
        self.number, self.items, self._own = number, [], 1
day = datetime.date(2025, 3, 14)
"""
OUT: list[tuple[str, str, Any, Any]] = [
    ("a dataclass as a model", "Part(1)", Part, Part(number=1)),
    ("an object of a class as a model", "Plain(1)", Part, Part(number=1)),
    ("dataclasses in a list", "[Part(1), Part(2)]", list[Part], [Part(number=1), Part(number=2)]),
    ("a namedtuple as itself", "Pair('a', 2)", Pair, Pair("a", 2)),
    ("a namedtuple as a tuple", "Pair('a', 2)", tuple[str, int], ("a", 2)),
    ("a namedtuple as a dict", "Pair('a', 2)", dict[str, Any], {"left": "a", "right": 2}),
    (
        "namedtuples as models",
        "[type('P', (Pair,), {})('a', 2)]",
        list[dict[str, Any]],
        [{"left": "a", "right": 2}],
    ),
    ("an enum as itself", "Color.RED", Color, Color.RED),
    ("an enum as a text", "Color.RED", str, "red"),
    ("bytes", "b'\\xff\\x00'", bytes, b"\xff\x00"),
    ("bytes inside", "{'a': [bytearray(b'x')]}", dict[str, list[bytes]], {"a": [b"x"]}),
    ("a set", "{3, 1}", set[int], {1, 3}),
    ("a set as a list", "{3, 1}", list[int], [1, 3]),
    ("a date", "day", dt.date, dt.date(2025, 3, 14)),
    ("a date as a text", "[str(day)]", list[str], ["2025-03-14"]),
    ("a time span", "datetime.timedelta(hours=1)", dt.timedelta, dt.timedelta(hours=1)),
    ("a decimal", "decimal.Decimal('1.50')", Decimal, Decimal("1.50")),
    ("keys that are numbers", "{1: 'a'}", dict[int, str], {1: "a"}),
    ("keys that are tuples", "{(1, 2): 'a'}", dict[tuple[int, int], str], {(1, 2): "a"}),
    ("a range", "range(3)", list[int], [0, 1, 2]),
    ("views of a dict", "{'a': 1}.keys()", list[str], ["a"]),
    ("infinity", "float('inf')", float, float("inf")),
    ("a fraction as a text", "__import__('fractions').Fraction(1, 3)", str, "1/3"),
]


@every_interpreter
@pytest.mark.parametrize(("expression", "kind", "expected"), [f[1:] for f in OUT], ids=[f[0] for f in OUT])
def test_what_code_submits_arrives(factory: Any, expression: str, kind: Any, expected: Any) -> None:
    """Objects of its own classes by their fields, values of Python's own types as they are."""
    code = f"{MADE_IN_THE_REPL}\nSUBMIT(answer={expression})"
    assert run(factory, code, {"x": 1}, answer=kind).answer == expected


ARRAYS: list[tuple[str, Any, Any]] = [
    ("numpy.float64(1.5)", float, 1.5),
    ("numpy.int64(2)", int, 2),
    ("[numpy.bool_(True)]", list[bool], [True]),
    ("numpy.arange(3)", list[int], [0, 1, 2]),
    ("pandas.DataFrame({'number': [1], 'items': [['a']]})", list[Part], [Part(number=1, items=["a"])]),
    ("pandas.Series([1, 2])", list[int], [1, 2]),
    ("pandas.Timestamp('2025-03-14')", dt.date, dt.date(2025, 3, 14)),
    ("Model(number=3)", Part, Part(number=3)),
    ("[Model(number=3, items=['a'])]", list[dict[str, Any]], [{"number": 3, "items": ["a"]}]),
]


@every_interpreter
@pytest.mark.parametrize(("expression", "kind", "expected"), ARRAYS, ids=[fact[0] for fact in ARRAYS])
def test_what_libraries_make_in_the_repl_can_be_submitted(
    factory: Any, expression: str, kind: Any, expected: Any
) -> None:
    """Arrays, frames and pydantic models."""
    imports = "import numpy, pandas, pydantic\n"
    imports += "class Model(pydantic.BaseModel):\n    number: int\n    items: list[str] = []\n"
    assert run(factory, f"{imports}SUBMIT(answer={expression})", {"x": 1}, answer=kind).answer == expected


@every_interpreter
def test_what_cannot_leave_is_refused_with_what_to_do(factory: Any) -> None:
    """A failed call, a function: the model can submit something else."""
    turns = [block("SUBMIT(answer=[print])"), block("SUBMIT(answer=['a'])")]
    with dspy.context(lm=ScriptedLM(turns)):
        prediction = RLM("x -> answer: list[str]", interpreter_factory=factory)(x="1")
    assert prediction.answer == ["a"]
    assert prediction.trajectory[0]["kind"] in ("error", "refused")


@every_interpreter
def test_an_input_can_be_submitted_as_it_came(factory: Any) -> None:
    """Models, dataclasses, enums, namedtuples, inside others too."""
    inputs = {"claim": CLAIM, "point": Point(1, [2]), "color": Color.BLUE, "pair": Pair("a", 2), "claims": [CLAIM]}
    kinds = {"claim2": Claim, "point2": Point, "color2": Color, "pair2": Pair, "claims2": list[Claim]}
    code = f"SUBMIT({', '.join(f'{name}2={name}' for name in inputs)})"
    prediction = run(factory, code, inputs, **kinds)
    assert [prediction[f"{name}2"] for name in inputs] == list(inputs.values())


# To sub-calls and tools


@every_interpreter
def test_objects_are_passed_to_typed_sub_calls(factory: Any) -> None:
    """Those that came in, and those that code made."""
    code = f"""{MADE_IN_THE_REPL}
class Claim:
    def __init__(self):
        self.text, self.day = 'made', day
made = dspy.Predict('day: date, raw: bytes, numbers: list[int] -> label')
asked = made(day=day, raw=b'a', numbers=range(2)).label
SUBMIT(answer=[judge(claim=x), judge(claim=Claim()), judge.map([x, {{'claim': x}}]), asked])
"""
    prediction = run(factory, code, {"x": CLAIM})
    assert prediction.answer == ["a label", "a label", ["a label", "a label"], "a label"]


@every_interpreter
def test_objects_are_passed_to_tools_and_come_back(factory: Any) -> None:
    """What a tool is given is what code gave; what it returns is an object again where the interpreter is ours."""
    seen: list[Any] = []

    def tool(raw: Any, day: Any, pair: Any, claim: Any) -> Any:
        """Take all sorts."""
        seen.extend([raw, day, tuple(pair), claim["text"] if isinstance(claim, dict) else claim.text])
        return CLAIM

    code = f"{MADE_IN_THE_REPL}\ngot = tool(raw=b'\\xff', day=day, pair=Pair('a', 2), claim=x)\n"
    code += "SUBMIT(answer=got['text'] if isinstance(got, dict) else got.text)"
    assert run(factory, code, {"x": CLAIM}, tools=[tool]).answer == "tides rise"
    assert seen == [b"\xff", dt.date(2025, 3, 14), ("a", 2), "tides rise"]


def test_a_tool_returns_objects_with_attributes() -> None:
    """Namedtuples and dataclasses of the caller's own module, too."""

    def tool() -> Any:
        """Return all sorts."""
        return [Pair("a", 2), Point(1), CLAIM, Color.RED]

    code = (
        "pair, point, claim, color = tool()\nSUBMIT(answer=[pair.left, pair[1], point.x, claim.text, color.name])"
    )
    assert run(PythonInterpreter, code, {"x": 1}, tools=[tool]).answer == ["a", 2, 1, "tides rise", "RED"]


def test_a_child_has_the_objects_of_its_parent() -> None:
    """A model that crosses two borders is still one."""

    def reply(messages: Messages) -> str:
        if "child" in messages[1]["content"]:
            return block("SUBMIT(answer=[claim.text, claim.parts[0].number, pair.right])")
        return block("SUBMIT(answer=dspy.RLM('claim, pair -> answer: list', 'child')(claim=x[0], pair=p).answer)")

    signature_of_child = "SUBMIT(answer=dspy.RLM(dspy.Signature('claim, pair -> answer: list', 'child'))"
    code = f"{signature_of_child}(claim=x[0], pair=p).answer)"

    def answering(messages: Messages) -> str:
        return reply(messages) if "Task: child" in messages[1]["content"] else block(code)

    prediction = run(PythonInterpreter, "", {"x": [CLAIM], "p": Pair("a", 2)}, lm=ScriptedLM(answering))
    assert prediction.answer == ["tides rise", 1, 2]


# Images, sounds, files


MEDIA = [
    dspy.Image(PNG),
    dspy.Audio(data="UklGRg==", audio_format="wav"),
    dspy.File.from_bytes(b"%PDF-1.4", mime_type="application/pdf"),
]
ASKING = [
    "llm_query('what is this?', media)",
    "llm_query(['what is this?', media])",
    "llm_query_batched([['what is this?', media]])[0]",
    "llm_query('what is this?', held['in'][0])",
]


@every_interpreter
@pytest.mark.parametrize("media", MEDIA, ids=lambda media: type(media).__name__)
@pytest.mark.parametrize("asking", ASKING)
def test_a_model_that_is_asked_about_an_image_gets_the_image(factory: Any, media: Any, asking: str) -> None:
    """By `llm_query`, alone or in a batch, and if it lies inside another input."""
    lm = ScriptedLM([block(f"SUBMIT(answer={asking})"), "it is small"])
    inputs = {"media": media, "held": {"in": [media]}}
    assert run(factory, "", inputs, lm=lm).answer == "it is small"
    parts = lm.history[-1]["messages"][-1]["content"]
    assert isinstance(parts, list)
    assert parts[0]["text"] == "what is this?"
    assert parts[1] == media.format()[0]


@pytest.mark.parametrize("factory", [PythonInterpreter, dspy.LocalInterpreter])
def test_an_image_in_an_f_string_is_seen_too(factory: Any) -> None:
    """Models write it so."""
    lm = ScriptedLM([block("SUBMIT(answer=llm_query(f'Look: {media} What is it?'))"), "small"])
    run(factory, "", {"media": MEDIA[0]}, lm=lm)
    texts = [part.get("text", "image") for part in lm.history[-1]["messages"][-1]["content"]]
    assert texts == ["Look: ", "image", " What is it?"]


@every_interpreter
def test_typed_sub_calls_and_submit_take_images(factory: Any) -> None:
    """As inputs of subs, declared or not, and as an answer."""
    code = "made = dspy.Predict('image: dspy.Image -> label')\n"
    code += "SUBMIT(answer=[see(image=x), *see.map([x, x]), made(image=x).label], back=x)"
    prediction = run(factory, code, {"x": MEDIA[0]}, answer=list[str], back=dspy.Image)
    assert prediction.answer == ["a label"] * 4
    assert prediction.back == MEDIA[0]


def test_code_cannot_make_an_image_that_it_was_not_given() -> None:
    """A name that nobody has told is refused, and says nothing."""
    with pytest.raises(ValueError, match="no such image"):
        taken({"__record__": "Image", "kind": "media", "fields": {"key": "0" * 12}}, Media())


def test_two_images_of_one_size_are_two_questions() -> None:
    """An answer about one is none about the other, also for the cache."""
    one, other = (dspy.Image(f"data:image/png;base64,{letter * 8}") for letter in "AB")
    assert repr(one) == repr(other)
    assert digest(one) != digest(other)
    cache, answers = SubCallCache(), iter(["first", "second"])

    def reply(messages: Messages) -> str:
        return block("SUBMIT(answer=llm_query('?', x))") if "Write one" in str(messages[1]) else next(answers)

    rlm = RLM(signature({"x": 1}), interpreter_factory=PythonInterpreter, cache=cache)
    with dspy.context(lm=ScriptedLM(reply)):
        assert [rlm(x=image).answer for image in (one, other, one)] == ["first", "second", "first"]


# Fuzzed


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


# A function as sub_lm, and `model=`


@every_interpreter
@pytest.mark.parametrize(
    "function",
    [
        lambda prompt: [f"about {prompt}"],
        lambda prompt: [{"text": f"about {prompt}"}],
        lambda prompt: f"about {prompt}",
    ],
    ids=["texts", "dicts", "a text"],
)
def test_sub_lm_may_be_a_function_of_the_prompt(factory: Any, function: Any) -> None:
    """As in `dspy.RLM`: it is called with the prompt, and its calls count."""
    rlm = RLM("x -> answer: list", sub_lm=function, interpreter_factory=factory)
    turn = block("SUBMIT(answer=[llm_query('a'), *llm_query_batched(['b', 'c'])])")
    with dspy.context(lm=ScriptedLM([turn])):
        prediction = rlm(x="1")
    assert prediction.answer == ["about a", "about b", "about c"]
    assert prediction.usage["by_role"]["query"]["calls"] == 3


def test_a_function_as_sub_lm_answers_typed_sub_calls(play: Play) -> None:
    """It sees instructions and fields as one text."""
    prompts: list[str] = []

    def function(prompt: str) -> str:
        prompts.append(prompt)
        return fields(label="a label")

    rlm = RLM("x -> answer", sub_lm=function)
    played = play(rlm, [block("SUBMIT(answer=dspy.Predict('text -> label')(text='sea').label)")], x="1")
    assert played.prediction.answer == "a label"
    assert "sea" in prompts[0]


async def test_an_async_function_as_sub_lm_is_awaited() -> None:
    """Under `await rlm.acall(...)`."""

    async def function(prompt: str) -> str:
        return f"about {prompt}"

    rlm = RLM("x -> answer", sub_lm=function, interpreter_factory=LocalPythonInterpreter)
    with dspy.context(lm=ScriptedLM([block("SUBMIT(answer=llm_query('a'))")])):
        assert (await rlm.acall(x="1")).answer == "about a"


def test_the_limits_of_a_function_as_sub_lm_are_kept(play: Play) -> None:
    """Calls are counted; a cost that nobody can know is not promised to be limited."""
    rlm = RLM("x -> answer", sub_lm=lambda prompt: prompt, limits=Limits(max_llm_calls=1))
    played = play(rlm, [block("print(llm_query_batched(['a', 'b']))"), block("SUBMIT(answer='x')")], x="1")
    assert "failed" in played.outputs[0] or "refused" in played.outputs[0] or "left" in played.outputs[0]
    assert FunctionLM(len).model == "function/len"


@pytest.mark.parametrize("given_lm", ["openai/gpt-5", 5, ScriptedLM])
def test_what_is_neither_an_lm_nor_a_function_is_refused(given_lm: Any) -> None:
    """The message says what to pass."""
    with pytest.raises(TypeError, match=r"dspy.LM\('openai/gpt-5-mini'\), or a function"):
        RLM("x -> answer", sub_lm=given_lm)


@every_interpreter
@pytest.mark.parametrize("call", ["llm_query('a', model={!r})", "llm_query_batched(['a'], model={!r})[0]"])
def test_model_may_name_the_model_that_is_asked_and_no_other(factory: Any, call: str) -> None:
    """No name is looked up; the error says which model there is."""
    good = [call.format(name) for name in ("scripted/lm", "lm", None)]
    turns = [block(call.format("openai/gpt-5")), block(f"SUBMIT(answer=[{', '.join(good)}])")]
    lm = ScriptedLM([*turns, "x", "x", "x"])
    with dspy.context(lm=lm):
        prediction = RLM("x -> answer: list", interpreter_factory=factory, cache=False)(x="1")
    assert "scripted/lm" in prediction.trajectory[0]["output"]
    assert "leave model= out" in prediction.trajectory[0]["output"]
    assert prediction.answer == ["x", "x", "x"]
