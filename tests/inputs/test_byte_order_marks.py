"""A byte order mark at the beginning of a file is no part of its text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from rlm_dspy import Files, Text
from rlm_dspy.grounding.search import Search
from rlm_dspy.inputs import describe
from rlm_dspy.inputs.file_mapping import ATTACHED_FROM
from rlm_dspy.inputs.text import READ_WHOLE_BYTES
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from tests.crossing import run

if TYPE_CHECKING:
    from pathlib import Path

MARK = b"\xef\xbb\xbf"
LINES = "first\nsecond: \ufeff\n"
"""A mark inside of a text is part of it."""


def marked(path: Path, text: str = LINES) -> Path:
    """Write a text after a byte order mark."""
    path.write_bytes(MARK + text.encode())
    return path


def test_a_text_begins_after_the_mark(tmp_path: Path) -> None:
    path = marked(tmp_path / "a.txt")
    text = Text.open(path)
    assert (str(text), len(text), text.digest()) == (LINES, len(LINES), Text(LINES).digest())
    with path.open("rb") as file:
        assert str(Text.open(file)) == LINES


def test_a_large_text_begins_after_the_mark(tmp_path: Path) -> None:
    """Also where it is not read whole."""
    long = "first\n" + "x" * READ_WHOLE_BYTES
    text = Text.open(marked(tmp_path / "a.txt", long))
    assert text.digest() == Text(long).digest()
    assert "ufeff" not in repr(text) + str(describe("text", text))
    assert [place.start for place in Search({"text": text}).find("first") or ()] == [0]


def test_the_files_of_a_folder_begin_after_their_marks(tmp_path: Path) -> None:
    long = "first\n" + "x\n" * 3_000_000
    for name, text in {"a.txt": LINES, "b.txt": long, "c.txt": ""}.items():
        marked(tmp_path / name, text)
    docs = Files.open(tmp_path)
    assert [(name, number) for name, number, _ in docs.grep("^first")] == [("a.txt", 1), ("b.txt", 1)]
    assert (docs["a.txt"], next(docs.lines("a.txt")), docs["c.txt"]) == (LINES, "first", "")
    assert docs["b.txt"] == long


@pytest.mark.parametrize("factory", [PythonInterpreter, LocalPythonInterpreter])
def test_code_finds_no_mark(factory: Any, tmp_path: Path) -> None:
    """In a text that is mapped, and in a file that is attached."""
    (tmp_path / "docs").mkdir()
    marked(tmp_path / "docs" / "long.txt", "é" * ATTACHED_FROM)
    marked(tmp_path / "docs" / "short.txt")
    inputs = {"text": Text.open(marked(tmp_path / "a.txt")), "docs": Files.open(tmp_path / "docs")}
    code = "SUBMIT(answer=[text, docs['short.txt'], docs['long.txt'][:2], len(docs['long.txt'])])"
    assert run(factory, code, inputs).answer == [LINES, LINES, "éé", ATTACHED_FROM]
