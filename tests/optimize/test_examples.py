"""Datasets: long texts wrapped, files of JSON lines read."""

from __future__ import annotations

import datetime as dt
import json
import re
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import Files, Table, Text
from rlm_dspy.optimize import compact, read_examples

if TYPE_CHECKING:
    from pathlib import Path


def test_long_texts_are_wrapped_and_the_rest_stays() -> None:
    """The example itself is not changed, and what it compares equal to neither."""
    example = dspy.Example(context="x" * 5_000, question="q", pages=["y" * 5_000]).with_inputs(
        "context", "question"
    )
    (wrapped,) = compact([example])
    assert isinstance(wrapped.context, Text)
    assert isinstance(example.context, str)
    assert wrapped.context == example.context
    assert wrapped.inputs().keys() == example.inputs().keys()
    assert wrapped.question is example.question
    assert compact([wrapped])[0].context is wrapped.context


def test_long_texts_in_lists_tuples_and_dicts_are_wrapped() -> None:
    """What has none stays the same object; a prompt with the example is short."""
    pages: list[Any] = [{"text": "x" * 5_000}, ("y" * 5_000, 2)]
    names = ["a", {"b": 1}]
    (wrapped,) = compact([dspy.Example(pages=pages, names=names).with_inputs("pages", "names")])
    assert wrapped.pages == pages
    assert len(repr(wrapped)) < 600
    assert wrapped.names is names
    assert isinstance(pages[0]["text"], str)


def test_a_wrapped_example_is_short_wherever_dspy_writes_it() -> None:
    """In its repr, and saved."""
    (wrapped,) = compact([dspy.Example(context="x" * 10_000_000)])
    assert len(repr(wrapped)) < 300
    assert len(json.dumps(wrapped.toDict())) < 300
    assert len(str(wrapped.context)) == 10_000_000


def test_lines_of_json_are_read(tmp_path: Path) -> None:
    """Inputs, labels, and texts that stand in files of their own."""
    (tmp_path / "a.txt").write_text("long text")
    path = tmp_path / "data.jsonl"
    path.write_text('{"context": {"file": "a.txt"}, "question": "q", "answer": [1]}\n\n')
    (example,) = read_examples(path, ["context", "question"])
    assert str(example.context) == "long text"
    assert example.inputs().keys() == ["context", "question"]
    assert example.answer == [1]


TYPES = {"table": Table, "files": Files, "day": dt.date, "least": float | None, "picture": dspy.Image, "q": str}


def test_values_are_read_into_the_types_of_the_inputs(tmp_path: Path) -> None:
    """So what is learned is learned on what the program is given later; labels stay as they are."""
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    (tmp_path / "data.jsonl").write_text(
        '{"table": {"file": "rows.csv"}, "files": {"file": "."}, "day": "2024-01-02", "least": null, '
        '"picture": "data:image/png;base64,AAAA", "q": {"file": "rows.csv"}, "seen": "2024-01-02"}'
    )
    (example,) = read_examples(tmp_path / "data.jsonl", list(TYPES), types=TYPES)
    kinds = {name: type(value) for name, value in example.items()}
    assert kinds == {
        "table": Table,
        "files": Files,
        "day": dt.date,
        "least": type(None),
        "picture": str,
        "q": Text,
        "seen": str,
    }


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"day": "soon"}', "line 1: the input 'day': expected date, got str 'soon'; write it like"),
        ('{"table": "a,b"}', "the input 'table': expected Table, got str 'a,b'; write {\"file\": \"its path\"}"),
    ],
)
def test_a_value_of_another_type_is_named(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(line)
    with pytest.raises(ValueError, match=re.escape(said)):
        read_examples(path, [], types=TYPES)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "contains no examples"),
        ("{", "data.jsonl, line 1:"),
        ("[1]", "line 1: expected a JSON object, got list"),
        ('{"question": "q"}', "line 1: the input 'context' is missing"),
        ('{"context": {"file": "no.txt"}}', "line 1: no.txt|line 1: .*no.txt does not exist"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, content: str, said: str) -> None:
    """With what is wrong with it."""
    path = tmp_path / "data.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=said):
        read_examples(path, ["context"])


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Before anything else."""
    with pytest.raises(ValueError, match="File not found"):
        read_examples(tmp_path / "none.jsonl", ["context"])
