"""Documents in a folder are texts there too, read one by one when code asks for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from rlm_dspy import Files
from rlm_dspy.inputs import file_mapping, files
from tests.crossing import answer, every_interpreter
from tests.inputs.sample_documents import SAMPLES, archive

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def papers(tmp_path: Path) -> Files:
    """Return a folder with documents, a text, an archive and a damaged document."""
    for name in ("paper.pdf", "report.docx", "page.html"):
        (tmp_path / name).write_bytes(SAMPLES[name]())
    (tmp_path / "notes.md").write_text("Founded by Bob\n", encoding="utf-8")
    (tmp_path / "some.zip").write_bytes(archive({"a": "b"}))
    (tmp_path / "half.pdf").write_bytes(b"%PDF-1.7\nnothing")
    return Files.open(tmp_path)


def test_a_document_of_a_folder_is_its_text(papers: Files) -> None:
    """With marks; the source of HTML stays, as in a folder of code."""
    assert papers["paper.pdf"].startswith("--- page 1 of 3 ---\nFirst (page)")
    assert papers["page.html"].startswith("<!doctype html>")
    assert [(name, line) for name, _, line in papers.grep("^Founded by")] == [
        ("notes.md", "Founded by Bob"),
        ("paper.pdf", "Founded by Ada"),
        ("report.docx", "Founded by Ada"),
    ]
    for name, says in {"half.pdf": "half.pdf cannot be parsed", "some.zip": "is a ZIP archive of 1 files"}.items():
        with pytest.raises(ValueError, match=says):
            papers[name]


def test_a_long_document_comes_in_pieces(papers: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed once for all of them."""
    whole = papers["paper.pdf"]
    monkeypatch.setattr(files, "PIECE_BYTES", 20)
    monkeypatch.setattr(file_mapping, "PIECE_BYTES", 20)
    again = Files.open(papers.root, "*.pdf")
    assert again["paper.pdf"] == whole
    assert again.whole("paper.pdf") == whole


@every_interpreter
def test_code_reads_documents_of_a_folder(factory: Any, papers: Files) -> None:
    """Wherever it runs: the host parses."""
    assert answer(factory, "papers['paper.pdf'].count('---')", papers=papers) == 6
