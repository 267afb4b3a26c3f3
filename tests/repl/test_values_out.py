"""Values cross out of a REPL: what code submits, and passes to sub-calls, tools and children, arrives."""

from __future__ import annotations

import datetime as dt
import enum
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import dspy
import pytest

from rlm_dspy import RLM
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.testing import ScriptedLM
from tests.crossing import CLAIM, Claim, Color, Pair, Part, Point, every_interpreter, run
from tests.playing import block

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
    signature_of_child = "SUBMIT(answer=dspy.RLM(dspy.Signature('claim, pair -> answer: list', 'child'))"
    lm = ScriptedLM(
        act=[block(f"{signature_of_child}(claim=x[0], pair=p).answer)")],
        child=[block("SUBMIT(answer=[claim.text, claim.parts[0].number, pair.right])")],
    )
    prediction = run(PythonInterpreter, "", {"x": [CLAIM], "p": Pair("a", 2)}, lm=lm)
    assert prediction.answer == ["tides rise", 1, 2]


class Kind(enum.Enum):
    """A kind of record."""

    LETTER = "letter"


TAKEN = [
    (dt.date, "datetime.date(2025, 3, 14)", dt.date(2025, 3, 14)),
    (Annotated[dt.date, "the day"], "'2025-03-14'", dt.date(2025, 3, 14)),
    (list[dt.time], "[datetime.time(9, 30)]", [dt.time(9, 30)]),
    (dict[str, dt.timedelta], "{'a': datetime.timedelta(1)}", {"a": dt.timedelta(1)}),
    (bytes, r"b'\xff'", b"\xff"),
    (Annotated[Kind, "the kind"], "'letter'", Kind.LETTER),
    (Annotated[tuple[int, int], "from, to"], "[1, 2]", (1, 2)),
    (Annotated[set[int], "pages"], "[1, 2]", {1, 2}),
    (set[int], "{1, 2}", {1, 2}),
    (Annotated[Path, "where"], "'a/b'", Path("a/b")),
]


@pytest.mark.parametrize("factory", [PythonInterpreter, LocalPythonInterpreter])
@pytest.mark.parametrize(("kind", "given", "taken"), TAKEN)
def test_a_tool_takes_a_value_of_the_type_that_its_parameter_has(
    factory: Any, kind: Any, given: str, taken: Any
) -> None:
    """Also where JSON has no such value."""
    seen: list[Any] = []

    def look(value: Any) -> None:
        """Look."""
        seen.append(value)

    look.__annotations__["value"] = kind
    code = f"import datetime\nlook({given})\nSUBMIT(a='done')"
    with dspy.context(lm=ScriptedLM(act=[block(code)]), interpreter_factory=factory):
        RLM("q -> a", tools=[look])(q="?")
    assert seen == [taken]


def test_a_tool_says_which_type_it_expects_in_place_of_a_date() -> None:
    def look(value: int) -> None:
        """Look."""

    code = "import datetime\ntry:\n    look(datetime.date.min)\nexcept ValueError as e:\n    SUBMIT(a=str(e))"
    with dspy.context(lm=ScriptedLM(act=[block(code)])):
        found = RLM("q -> a", tools=[look])(q="?")
    assert found.a.startswith("look: value: expected int, got date")
