"""Types written in a REPL are read by a closed grammar: it looks nothing up."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from rlm_dspy.errors import InvalidInputs
from rlm_dspy.repl.tools import SETTINGS
from rlm_dspy.subcalls.ad_hoc import signature_from, written
from rlm_dspy.subcalls.frames import ModelFrame, SignatureFrame
from rlm_dspy.subcalls.type_grammar import MAX_DEPTH, TypeReader
from tests.planting import ANNOTATIONS


def read(text: str) -> Any:
    return TypeReader({}).read(text)


def signature(text: str, **classes: Any) -> Any:
    return signature_from(SignatureFrame.model_validate({"text": text, "classes": classes}))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("str", str),
        ("None", None),
        ("Any", Any),
        ("object", Any),
        ("list", list),
        ("list[int]", list[int]),
        ("List[int]", list[int]),
        ("typing.List[int]", list[int]),
        ("dict[str, list[int]]", dict[str, list[int]]),
        ("tuple[int, str]", tuple[int, str]),
        ("tuple[int, ...]", tuple[int, ...]),
        ("Tuple[int]", tuple[int]),
        ("set[str]", set[str]),
        ("FrozenSet[str]", frozenset[str]),
        ("Sequence[int]", Sequence[int]),
        ("Mapping[str, int]", Mapping[str, int]),
        ("Optional[int]", int | None),
        ("Union[int, str, None]", int | str | None),
        ("int | None", int | None),
        ("int | str | float", int | str | float),
        ("Literal['a', 1, True, -2]", Literal["a", 1, True, -2]),
        ("Literal['os.environ', '__import__']", Literal["os.environ", "__import__"]),
        ("'int'", int),
        ("list['int | None']", list[int | None]),
        ("date", dt.date),
        ("datetime.date", dt.date),
        ("datetime.datetime", dt.datetime),
        ("timedelta", dt.timedelta),
        ("decimal.Decimal", decimal.Decimal),
        ("dspy.Image", dspy.Image),
        ("list[dspy.Audio]", list[dspy.Audio]),
        ("File", dspy.File),
        ("(int)", int),
        ("Annotated[int]", int),
    ],
)
def test_a_type_of_the_grammar_is_read(text: str, kind: Any) -> None:
    assert read(text) == kind


def test_a_long_union_is_not_deep() -> None:
    assert len(get_args(read(f"Literal[0] | {' | '.join(f'Literal[{n}]' for n in range(1, 60))}"))) == 60


@pytest.mark.parametrize(
    "text",
    [
        *("os", "os.environ", "os.getcwd()", "__main__", "__main__.x", "builtins.open", "dspy.settings.lm.kwargs"),
        *(
            "typing.sys",
            "typing.sys.modules",
            "dspy.settings",
            "datetime.sys",
            "str.__class__",
            "int.__subclasses__()",
        ),
        *(
            "lambda: 1",
            "f'{1}'",
            "[int]",
            "{int}",
            "(int, str)",
            "1",
            "b'x'",
            "...",
            "int + str",
            "not int",
            "*int",
        ),
        *("int if 1 else str", "(x := int)", "int[0]", "str[int]", "Image[int]", "complex", "bytearray", "type"),
        *("Callable", "Callable[[int], str]", "Iterator[int]", "TypeVar", "ForwardRef('os')", "Field(ge=1)"),
        *(
            "list[]",
            "dict[str]",
            "list[int, str]",
            "Optional[int, str]",
            "Literal[int]",
            "Literal[1.5]",
            "Literal[b'a']",
        ),
        *("Literal[()]", "Union[()]", "list[...]", "tuple[..., int]", "Literal", "Union", "Optional", "Annotated"),
        *("", " ", "int; str", "int\nstr", "int)", "(int", "\x00", "yield", "await x", "print('x')"),
        *("Annotated[str, os.environ]", "Annotated[str, 'x']", "Annotated[str, Field(default_factory=os.getcwd)]"),
        *(
            "Annotated[str, Field(default_factory='x')]",
            "Annotated[str, Field(alias='x')]",
            "Annotated[str, Field(1)]",
        ),
        *("Annotated[str, Field(**x)]", "Annotated[str, Field(min_length=os.getpid())]", "Annotated[str, Ge(1)]"),
        *(
            "Annotated[str, Field(ge=1)]",
            "Annotated[int, Field(pattern='a')]",
            "Annotated[list[int], Field(ge=1)]",
        ),
        *(
            "Annotated[int, Field(ge='a')]",
            "Annotated[int, Field(ge=1.5)]",
            "Annotated[int, Field(multiple_of=0)]",
        ),
        *("Annotated[str, Field(min_length=-1)]", "Annotated[str, Field(max_length=10**400)]"),
        *(
            "Annotated[float, Field(ge=1e999)]",
            "Annotated[Any, Field(min_length=1)]",
            "Annotated[None, Field(ge=1)]",
        ),
        *("\uff4f\uff53", "\uff4f\uff53.environ", "_private", "list[_private]"),
    ],
)
def test_what_is_not_in_the_grammar_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputs) as caught:
        read(text)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "text", ["list[" * 50 + "int" + "]" * 50, "(" * 500 + "int", "-" * 9_999, "a." * 4_000 + "b"]
)
def test_deep_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputs):
        read(text)


def test_depth_and_length_have_limits() -> None:
    assert read("list[" * (MAX_DEPTH - 1) + "int" + "]" * (MAX_DEPTH - 1))
    with pytest.raises(InvalidInputs, match="20 levels deep"):
        read("list[" * (MAX_DEPTH + 1) + "int" + "]" * (MAX_DEPTH + 1))
    with pytest.raises(InvalidInputs, match="10,000 are allowed"):
        read(f"Literal[{'1' * 10_000}]")
    with pytest.raises(ValidationError, match="10,000 are allowed"):
        SignatureFrame(text=f"text -> {', '.join(f'x{n}' for n in range(3_000))}")


@settings(deadline=None, max_examples=400)
@given(ANNOTATIONS | st.text(max_size=30))
def test_any_text_is_a_type_or_is_refused_and_nothing_is_imported(text: str) -> None:
    before = set(sys.modules)
    told = ""
    try:
        kind = read(text)
        assert kind is None or get_origin(kind) or kind is Any or isinstance(kind, type)
    except InvalidInputs as error:
        told = str(error)
    assert " at 0x" not in told
    assert "<class" not in told
    assert set(sys.modules) == before


# Signatures


def test_an_inline_signature_has_the_fields_and_types_it_names() -> None:
    made = signature("text, topic: str | None -> score: int, why: list[str]")
    assert {name: field.annotation for name, field in made.input_fields.items()} == {
        "text": str,
        "topic": str | None,
    }
    assert written(made) == "text: str, topic: Union[str, NoneType] -> score: int, why: list[str]"


@pytest.mark.parametrize(
    "text",
    [
        *(
            "no arrow",
            "a -> b -> c",
            "a ->",
            "-> ",
            "a, a -> b",
            "a -> b, b",
            "a -> a",
            "a: int = 3 -> b",
            "*a -> b",
        ),
        *(
            "**a -> b",
            "a, /, b -> c",
            "a, *, b -> c",
            "a -> b: int): pass\nimport os\ndef f(c",
            "a): return os\n# -> b",
        ),
        *(
            "a -> b) -> (os.environ",
            "a -> class",
            "a -> _b",
            "_a -> b",
            "a -> __b__",
            "a -> model_config",
            "self -> x",
        ),
        *(
            "a -> model_fields",
            "a -> copy",
            "a -> json",
            "signature -> x",
            "config -> x",
            "lm, a -> x",
            "demos -> x",
        ),
        *("a b -> c", "a.b -> c", "'a' -> c", "a -> b: os.environ", "a: os -> b", "a -> b: Unknown"),
    ],
)
def test_a_wrong_signature_is_named_and_says_how_to_write_it(text: str) -> None:
    with pytest.raises(InvalidInputs) as caught:
        signature(text)
    assert str(caught.value).startswith(f"Invalid signature {text!r}: ")
    assert str(caught.value).endswith("Write e.g. 'text, topic -> score: int'.")


def test_no_input_has_the_name_of_a_setting_of_a_module() -> None:
    """DSPy's modules take these by keyword, with the inputs: a signature, an LM, options of its calls."""
    for name in SETTINGS:
        with pytest.raises(InvalidInputs, match="Invalid name of an input"):
            signature(f"text, {name} -> x")


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", "(x+x+)+y"])
def test_a_pattern_of_a_model_takes_linear_time(pattern: str) -> None:
    made = signature(f"text -> x: Annotated[str, Field(pattern={pattern!r})]")
    pattern_field = Annotated[str, *made.output_fields["x"].metadata]
    begun = time.thread_time()
    with pytest.raises(ValidationError):
        TypeAdapter(pattern_field).validate_python("a" * 100_000 + "!")
    assert time.thread_time() - begun < 5


@pytest.mark.parametrize("pattern", ["(?=a)b", "(", "((a{900}){900}){900}", r"(a)\1"])
def test_a_pattern_that_does_not_compile_is_refused_with_the_reason(pattern: str) -> None:
    with pytest.raises(InvalidInputs, match="regex") as caught:
        signature(f"text -> x: Annotated[str, Field(pattern={pattern!r})]")
    assert "x: " in str(caught.value)


# Classes of the REPL

FACT = {
    "kind": "model",
    "doc": "A fact.",
    "fields": {
        "text": {"type": "str", "constraints": {"min_length": 2}},
        "year": {"type": "int", "constraints": {"ge": 1900}},
        "sure": {"type": "float | None", "required": False, "default": 0.5, "desc": "how sure"},
        "on": {"type": "date", "required": False, "constraints": {"ge": "2000-01-01"}},
    },
}
KIND = {"kind": "enum", "members": {"NEWS": "news", "OLD": 2}}


def test_a_class_is_built_from_its_fields_and_constraints_hold() -> None:
    made = signature("text -> facts: list[Fact], kind: Kind", Fact=FACT, Kind=KIND)
    (fact,) = get_args(made.output_fields["facts"].annotation)
    assert issubclass(fact, BaseModel)
    assert (fact.__name__, fact.__doc__) == ("Fact", "A fact.")
    good = fact(text="ab", year=1900, on="2001-01-01")
    assert (good.sure, good.on) == (0.5, dt.date(2001, 1, 1))
    for wrong in ({"text": "a"}, {"year": 1899}, {"on": "1999-01-01"}, {"sure": "x"}):
        with pytest.raises(ValidationError):
            fact(**{"text": "ab", "year": 1900, "on": "2001-01-01", **wrong})
    kind = made.output_fields["kind"].annotation
    assert issubclass(kind, enum.Enum)
    assert [(member.name, member.value) for member in kind] == [("NEWS", "news"), ("OLD", 2)]


def test_classes_may_hold_one_another_and_names_may_stand_for_types() -> None:
    page = {"kind": "model", "fields": {"facts": {"type": "list['Fact']"}, "kind": {"type": "Optional[Kind]"}}}
    made = signature(
        "text -> page: Page, s: Score",
        Page=page,
        Fact=FACT,
        Kind=KIND,
        Score={"kind": "alias", "type": "Literal[1, 2]"},
    )
    page_made = made.output_fields["page"].annotation
    found = page_made(facts=[{"text": "ab", "year": 2000, "on": "2001-01-01"}], kind="news")
    assert (found.facts[0].year, found.kind.name) == (2000, "NEWS")
    assert made.output_fields["s"].annotation == Literal[1, 2]


def test_a_class_that_contains_itself_is_refused() -> None:
    node = {"kind": "model", "fields": {"children": {"type": "list['Node']"}}}
    with pytest.raises(InvalidInputs, match="contains itself"):
        signature("text -> tree: Node", Node=node)
    a, b = ({"kind": "model", "fields": {"x": {"type": name}}} for name in ("B", "A"))
    with pytest.raises(InvalidInputs, match="contains itself"):
        signature("text -> x: A", A=a, B=b)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "__base__",
            "__config__",
            "__validators__",
            "__doc__",
            "__module__",
            "__cls_kwargs__",
            "_private",
            "__x",
        ),
        *(
            "model_config",
            "model_fields",
            "model_post_init",
            "copy",
            "json",
            "dict",
            "validate",
            "a b",
            "",
            "1a",
            "class",
        ),
        "\uff58",
    ],
)
def test_no_field_of_a_class_is_a_setting_of_the_factory(name: str) -> None:
    model = {"kind": "model", "fields": {name: {"type": "str"}}}
    with pytest.raises(InvalidInputs, match="Invalid name of a field of M"):
        signature("text -> x: M", M=model)


@pytest.mark.parametrize("name", ["_ignore_", "__members__", "_order_", "mro", "a b", ""])
def test_no_member_of_an_enum_is_a_setting(name: str) -> None:
    with pytest.raises(InvalidInputs, match="Invalid name of a member of E"):
        signature("text -> x: E", E={"kind": "enum", "members": {name: 1}})


@pytest.mark.parametrize("name", ["__main__", "_M", "a.b", "", "os.path"])
def test_a_class_has_a_plain_name(name: str) -> None:
    model = ModelFrame.model_validate({"kind": "model", "fields": {"x": {"type": "str"}}})
    with pytest.raises(InvalidInputs):
        TypeReader({name: model, "A": model}).read(name)
    signature_frame = {"name": name, "fields": [{"name": "x", "way": "out", "type": "str"}]}
    with pytest.raises(InvalidInputs):
        signature_from(SignatureFrame.model_validate(signature_frame))


def test_a_field_of_a_signature_class_keeps_default_description_and_constraints() -> None:
    frame = {
        "name": "Rate",
        "instructions": "Rate it.",
        "fields": [
            {"name": "text", "way": "in", "type": "str", "desc": "what to rate"},
            {"name": "most", "way": "in", "type": "int", "required": False, "default": 5},
            {"name": "score", "way": "out", "type": "int", "constraints": {"ge": 1, "le": 5}},
        ],
    }
    made = signature_from(SignatureFrame.model_validate(frame))
    assert (made.instructions, made.input_fields["most"].default) == ("Rate it.", 5)
    assert made.input_fields["text"].json_schema_extra["desc"] == "what to rate"
    score = made.output_fields["score"]
    assert score.annotation is int
    with pytest.raises(ValidationError):
        TypeAdapter(Annotated[int, *score.metadata]).validate_python(6)
    assert TypeAdapter(Annotated[int, Field(ge=1), *score.metadata]).validate_python(5) == 5


def test_patterns_are_counted_over_classes_and_fields() -> None:
    """Each is compiled and kept as long as the signature."""
    pattern = "Annotated[str, Field(pattern='^a')]"
    model = {"kind": "model", "fields": {f"f{n}": {"type": pattern} for n in range(9)}}
    assert signature(f"text -> m: M, {', '.join(f'x{n}: {pattern}' for n in range(7))}", M=model)
    with pytest.raises(InvalidInputs, match="16 patterns"):
        signature(f"text -> m: M, {', '.join(f'x{n}: {pattern}' for n in range(8))}", M=model)


def test_names_for_types_that_multiply_are_refused() -> None:
    """Nine short names would stand for a million types."""
    aliases = {f"A{n}": {"kind": "alias", "type": f"tuple[{', '.join([f'A{n + 1}'] * 5)}]"} for n in range(8)}
    begun = time.thread_time()
    with pytest.raises(InvalidInputs, match="more than 5,000 parts"):
        signature("text -> x: A0", **aliases, A8={"kind": "alias", "type": "int"})
    assert time.thread_time() - begun < 5


def test_unions_of_classes_that_multiply_are_refused() -> None:
    """A value that fits none would be tried with each path: six to the power of eight, with the GIL held."""
    models = {
        f"M{n}_{k}": {
            "kind": "model",
            "fields": {"x": {"type": " | ".join(f"M{n + 1}_{other}" for other in range(6)) if n < 8 else "int"}},
        }
        for n in range(9)
        for k in range(6)
    }
    with pytest.raises(InvalidInputs, match="more than 5,000 parts"):
        signature("text -> x: M0_0", **models)


def test_classes_that_hold_one_another_many_times_are_built_once() -> None:
    models = {
        f"M{n}": {"kind": "model", "fields": {f"f{k}": {"type": f"M{n + 1}"} for k in range(3)}} for n in range(6)
    }
    begun = time.thread_time()
    assert signature("text -> x: M0", **models, M6={"kind": "model", "fields": {"x": {"type": "int"}}})
    assert time.thread_time() - begun < 5
