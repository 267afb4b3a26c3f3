"""Documents are text with a mark before each page, whatever their name, and what cannot be read says why."""

from __future__ import annotations

import copy
import io
import pickle
import sys
from typing import TYPE_CHECKING

import pytest

from rlm_dspy import Text
from rlm_dspy.errors import UnreadableDocument
from rlm_dspy.inputs import describe
from rlm_dspy.inputs.documents import HEAD_BYTES, kind_of
from tests.inputs.sample_documents import SAMPLES, archive, docx, html, paragraph, pdf, pptx, xlsx

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., Text]:
    """Return a function that writes a file and opens it."""

    def open_bytes(name: str, content: bytes, password: str | None = None) -> Text:
        (tmp_path / name).write_bytes(content)
        return Text.open(tmp_path / name, password=password)

    return open_bytes


def test_each_page_of_a_pdf_follows_its_mark(opened: Callable[..., Text]) -> None:
    """Lines stay lines; `pages` has the pages without marks."""
    text = opened("paper.pdf", SAMPLES["paper.pdf"]())
    assert str(text) == (
        "--- page 1 of 3 ---\nFirst (page)\nits second line\n\n"
        "--- page 2 of 3 ---\nFounded by Ada\n\n"
        "--- page 3 of 3 ---\nThe end"
    )
    assert text.pages == ["First (page)\nits second line", "Founded by Ada", "The end"]
    assert (text.name, text.path) == ("paper.pdf", None)
    assert repr(text).startswith("Text(113 characters of paper.pdf: '--- page 1 of 3 ---")


@pytest.mark.parametrize("name", SAMPLES)
def test_a_document_is_known_by_its_content_alone(name: str, opened: Callable[..., Text]) -> None:
    """A download is often called something else."""
    assert "Founded by" in str(opened("download", SAMPLES[name]()))


def test_slides_and_sheets_are_marked_as_such(opened: Callable[..., Text]) -> None:
    """Sheets by name; tables are Markdown, numbers as they are."""
    talk = opened("talk.pptx", pptx("Tides rise", "Tides fall"))
    assert str(talk) == "--- slide 1 of 2 ---\n## Tides rise\n\n--- slide 2 of 2 ---\n## Tides fall"
    book = opened("book.xlsx", xlsx({"Sales": [["name", "sum"], ["Ada", 4.5]], "More": [["x"]]}))
    assert str(book).startswith("--- sheet 1 of 2: Sales ---\n| name | sum |\n| --- | --- |\n| Ada | 4.5 |\n")
    assert "--- sheet 2 of 2: More ---" in str(book)


def test_a_docx_has_the_pages_that_its_breaks_make(opened: Callable[..., Text]) -> None:
    """Without any it has none: where its pages end is not in the file."""
    broken = opened("a.docx", docx(paragraph("one") + paragraph("\f") + paragraph("two")))
    assert broken.pages == ["one", "two"]
    whole = opened("b.docx", docx(paragraph("one") + paragraph("two")))
    assert (str(whole), whole.pages) == ("one\n\ntwo", ["one\n\ntwo"])


def test_html_is_decoded_as_it_says_and_loses_no_text_but_code(opened: Callable[..., Text]) -> None:
    """Links, headers and navigation stay; scripts do not."""
    body = "<nav>Home</nav><article><header><h1>Tides</h1></header>caf\u00e9</article><script>alert(1)</script>"
    page = f'<html><head><meta charset="iso-8859-1"></head><body>{body}</body></html>'.encode("latin-1")
    text = str(opened("page.htm", page))
    assert all(part in text for part in ("Home", "# Tides", "caf\u00e9"))
    assert "alert" not in text


def test_the_model_is_told_how_pages_are_marked(opened: Callable[..., Text]) -> None:
    """The line that describes the variable begins with the first mark, which counts the pages."""
    text = opened("long.pdf", pdf(*["word " * 20] * 120))
    assert len(text.pages) == 120
    assert "characters: --- page 1 of 120 ---" in str(describe("context", text)).replace("'", "")


def test_an_open_file_is_read_to_its_end() -> None:
    """As a pipe is; what is no document must be UTF-8."""
    assert Text.open(io.BytesIO(SAMPLES["paper.pdf"]())).pages[1] == "Founded by Ada"
    assert str(Text.open(io.BytesIO("na\u00efve".encode()))) == "na\u00efve"
    with pytest.raises(UnicodeDecodeError):
        Text.open(io.BytesIO(b"caf\xe9"))
    with pytest.raises(UnreadableDocument, match=r"the file is a PNG image\."):
        Text.open(io.BytesIO(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"))


@pytest.mark.parametrize(("block", "kind"), [(b"\0", UnreadableDocument), (b"\xff", UnicodeDecodeError)])
def test_an_open_file_without_an_end_is_refused_by_how_it_begins(block: bytes, kind: type[Exception]) -> None:
    class Endless(io.RawIOBase):
        left = 10

        def read(self, size: int | None = -1) -> bytes:
            assert self.left, "it is read on and on"
            self.left -= 1
            return block * (size or 0)

    with pytest.raises(kind):
        Text.open(Endless())  # type: ignore[arg-type]


def test_text_that_mentions_a_format_stays_text(opened: Callable[..., Text]) -> None:
    """And is still read when it is needed."""
    text = opened("notes.txt", b"PK is a postcode; <html> is a tag.\n")
    assert text.path is not None
    assert text.pages == []


def test_comments_before_html_are_read_once() -> None:
    """A text that begins with many of them, and is none, would be tried in 2^500 ways."""
    comments = b"<!-- a --> " * 400
    assert kind_of(comments[:HEAD_BYTES], "a.txt") == "text"
    assert kind_of(comments[:3_000] + b"<html>", "a.txt") == "text"  # the last comment is cut
    assert kind_of(comments[:3_300] + b"<html>", "a.txt") == "html"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("scan.pdf", pdf("", ""), "scan.pdf holds no text but the pictures of 2 pages. Recognize it first"),
        ("empty.docx", docx(""), "empty.docx holds no text."),
        ("some.zip", archive({"a": "b"}), "some.zip is a ZIP archive of 1 files, not a document. Unpack it."),
        (
            "picture.pdf",
            b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
            "picture.pdf is a PNG image. Text.open reads UTF-8 text, PDF",
        ),
        ("old.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0\0", "an Office file of before 2007, or an encrypted one"),
        ("noise.docx", bytes(range(256)), "noise.docx is a binary file. Text.open reads"),
        ("half.pdf", b"%PDF-1.7\nnothing", "half.pdf cannot be parsed: Failed to load document"),
        ("half.docx", SAMPLES["report.docx"]()[:300], "half.docx cannot be parsed: File is not a zip file."),
    ],
)
def test_what_cannot_be_read_says_why(
    name: str, content: bytes, problem: str, opened: Callable[..., Text]
) -> None:
    """It names the file and what to do."""
    with pytest.raises(UnreadableDocument) as raised:
        opened(name, content)
    assert problem in str(raised.value)


def test_an_encrypted_pdf_takes_a_password(opened: Callable[..., Text]) -> None:
    """Without it, and with a wrong one, the error says so."""
    locked = pdf("The secret", password="tide")
    assert opened("locked.pdf", locked, "tide").pages == ["The secret"]
    with pytest.raises(UnreadableDocument, match=r"locked.pdf is encrypted. Give its password: Text.open"):
        opened("locked.pdf", locked)
    with pytest.raises(UnreadableDocument, match=r"The password does not open .*locked.pdf"):
        opened("locked.pdf", locked, "wave")


def test_no_parser_is_imported_in_this_process(opened: Callable[..., Text]) -> None:
    """A file that breaks one breaks another process."""
    assert opened("paper.pdf", SAMPLES["paper.pdf"]()).pages
    assert not {"xberg", "pypdfium2"} & set(sys.modules)


def test_a_missing_extra_is_named(opened: Callable[..., Text], monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that parses finds no more modules than this one."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "site-packages" not in entry])
    with pytest.raises(UnreadableDocument, match=r"a.pdf needs the extra `documents`: pip install"):
        opened("a.pdf", pdf("text"))


def test_html_may_be_all_that_a_small_page_is(opened: Callable[..., Text]) -> None:
    """A fragment is known by its suffix."""
    assert str(opened("part.html", b"<p>one</p><p>two</p>")) == "one\n\ntwo"
    assert "T" not in str(opened("page.html", html("<p>x</p>")))


def test_a_document_survives_copies_and_compares_as_its_text(opened: Callable[..., Text]) -> None:
    """As any other text."""
    text = opened("paper.pdf", SAMPLES["paper.pdf"]())
    for copied in (copy.deepcopy(text), pickle.loads(pickle.dumps(text))):
        assert (copied, copied.pages) == (text, text.pages)
    assert text == str(text)
