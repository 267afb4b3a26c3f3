"""What goes into a run, and how it is described to the model."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any

import dspy
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter

from rlm_dspy import RLM, Text
from rlm_dspy.inputs import describe, plain
from rlm_dspy.testing import ScriptedLM

if TYPE_CHECKING:
    from pathlib import Path

ANY_TEXT = st.text(max_size=2_000)


@given(ANY_TEXT)
@example("\U0010ffff" * 500)
@example("\ud800" * 500)
@example("'" * 500)
def test_the_repr_of_a_text_stays_short(text: str) -> None:
    """Whatever it holds, it is one line of bounded length that names its size."""
    shown = repr(Text(text))
    assert len(shown) < 800
    assert "\n" not in shown
    assert f"{len(text):,} characters" in shown


@given(ANY_TEXT)
@example("\ud800" * 500)
def test_a_description_is_one_bounded_line(text: str) -> None:
    """Also of a text full of line ends."""
    line = str(describe("text", text))
    assert line.startswith("text: str, ")
    assert "\n" not in line
    assert len(line) < 10 * 400 + 100
    line.encode("utf-8")


def test_a_short_text_is_described_whole_and_a_long_one_by_its_ends() -> None:
    """The model sees what fits, else size, beginning and end."""
    assert str(describe("q", "why?")) == "q: str, 'why?'"
    long = str(describe("book", "BEGIN " + "x" * 5_000 + " END"))
    assert "5,010 characters" in long
    assert long.startswith("book: str, 5,010 characters: BEGIN xxx")
    assert long.endswith("xxx END")
    assert len(long) < 350


class Person(BaseModel):
    name: str


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ([1, 2, 3], "v: list, 3 items, [1, 2, 3]"),
        ({"a": None}, "v: dict, 1 items, {'a': None}"),
        (12, "v: int, 12"),
        (None, "v: NoneType, None"),
        (Person(name="Ada"), "v: Person, Person(name='Ada')"),
    ],
)
def test_other_values_are_described_by_type_size_and_beginning(value: Any, shown: str) -> None:
    """A model can tell what it has from one line."""
    assert str(describe("v", value)) == shown


def test_a_value_that_contains_itself_is_described_too() -> None:
    """Nothing that can be an input breaks the first message."""
    loop: list[Any] = [1]
    loop.append(loop)
    assert str(describe("v", loop)).startswith("v: list, 2 items")


def test_a_text_of_a_file_reads_it_when_needed(tmp_path: Path) -> None:
    """Once; the name stands in its repr."""
    path = tmp_path / "book.md"
    path.write_text("first", encoding="utf-8")
    text = Text.open(path)
    path.write_text("second, ü", encoding="utf-8")
    assert (str(text), len(text), text.path) == ("second, ü", 9, path.resolve())
    path.unlink()
    assert plain(text) == "second, ü"
    assert "of book.md" in repr(text)


def test_a_text_of_no_file_is_refused(tmp_path: Path) -> None:
    """The message says what `Text.open` takes."""
    with pytest.raises(FileNotFoundError, match="UTF-8 text file"):
        Text.open(tmp_path / "none.md")
    with pytest.raises(FileNotFoundError):
        Text.open(tmp_path)


def test_a_text_of_a_file_that_is_no_utf8_says_so_when_read(tmp_path: Path) -> None:
    """Nothing is replaced silently."""
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(UnicodeDecodeError):
        str(Text.open(path))


@given(ANY_TEXT)
def test_a_text_equals_its_str_and_survives_copies(text: str) -> None:
    """It compares and hashes as the text it is."""
    given = Text(text)
    assert given == text
    assert hash(given) == hash(text)
    assert len(given) == len(text)
    assert copy.deepcopy(given) == given
    if text.isascii():
        assert pickle.loads(pickle.dumps(given)) == given
    assert given != 3


def test_a_text_in_a_saved_example_is_its_short_form() -> None:
    """A 10 MB context makes no 10 MB record."""
    saved = dspy.Example(context=Text("x" * 100_000)).toDict()
    assert len(str(saved)) < 500


def test_a_field_of_type_text_takes_both_and_writes_the_short_form() -> None:
    """Pydantic reads a `str` or a `Text`."""
    adapter = TypeAdapter(Text)
    assert adapter.validate_python("abc") == Text("abc")
    text = Text("x" * 100_000)
    assert adapter.validate_python(text) is text
    assert len(adapter.dump_json(text)) < 500


def test_a_text_inside_lists_tuples_and_dicts_becomes_a_str_too() -> None:
    """The REPL sees plain strings at any depth; what holds no Text stays the same object."""
    untouched = [["a"], {"b": 1}]
    assert plain({"parts": [Text("one"), {"two": Text("two")}]}) == {"parts": ["one", {"two": "two"}]}
    assert [type(part) for part in plain((Text("one"), [Text("two")], 3))] == [str, list, int]
    assert plain(untouched) is untouched


def test_a_large_container_is_described_in_a_short_line() -> None:
    """However much it holds, and without writing it out first."""
    line = str(describe("rows", [{"text": "x" * 10_000}] * 10_000))
    assert line.startswith("rows: list, 10,000 items, [{'text': 'xxx")
    assert len(line) < 500


@pytest.mark.parametrize(
    "value",
    [
        'It\'s "so": ' * 100,
        list(range(30)),
        ["x" * 500],
        {"text": "y" * 500},
        [b"z" * 500],
        10**300,
        [{"a": [0] * 99}],
    ],
    ids=type,
)
def test_a_description_that_leaves_something_out_is_no_python(value: Any) -> None:
    """A small model copies a preview that looks like a literal into an assignment, and so loses the input."""
    variable = describe("v", value)
    assert variable.long
    assert "left out" in variable.value
    for copied in (variable.value, variable.value.partition(": ")[2], variable.value.partition(", ")[2]):
        with pytest.raises(SyntaxError):
            compile(f"v = {copied}", "copied", "exec")
    assert not describe("v", [1, "a"]).long


def test_a_large_file_is_described_without_reading_it_whole(tmp_path: Path) -> None:
    """By its bytes, its beginning and its end; the host keeps none of it."""
    path = tmp_path / "large.txt"
    path.write_text("first " + "ü" * 9_000_000 + " last", encoding="utf-8")
    text = Text.open(path)
    line = str(describe("context", text))
    assert line.startswith("context: str, 18,000,011 bytes of UTF-8: first üü")
    assert line.endswith("ü last")
    assert text._value is None


def test_a_large_file_reaches_code_without_the_host_reading_it(tmp_path: Path) -> None:
    """The confined interpreter maps it."""
    path = tmp_path / "large.txt"
    path.write_text("a" * 20_000_000, encoding="utf-8")
    text = Text.open(path)
    with dspy.context(lm=ScriptedLM(["```python\nSUBMIT(length=len(context))\n```"])):
        prediction = RLM("context -> length: int", policy=None)(context=text)
    assert prediction.length == 20_000_000
    assert text._value is None


def test_the_short_form_of_a_large_file_does_not_read_it(tmp_path: Path) -> None:
    """A record and a log show inputs in short form: 20 MB must not be read for that."""
    path = tmp_path / "large.txt"
    path.write_bytes("é".encode() * 10_000_000)
    text = Text.open(path)
    assert repr(text) == f"Text(20,000,000 bytes of large.txt: {'é' * 60!r} ...)"
    assert text._value is None


def test_a_text_of_a_number_is_refused() -> None:
    wrong: Any = 3
    with pytest.raises(TypeError, match=r"Text.open takes a path, an address or an open binary file, not 3"):
        Text.open(wrong)
