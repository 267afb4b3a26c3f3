"""Reads documents as text, page by page.

PDF, DOCX, PPTX, XLSX, EPUB and HTML are recognized by their content and parsed in a process of their own
(`isolated.document`), so that a hostile file can neither hang this process nor reach anything.
"""

from __future__ import annotations

import re
from typing import IO, TYPE_CHECKING, Literal

from pydantic import BaseModel

from rlm_dspy.errors import UnreadableDocument
from rlm_dspy.inputs.isolated.process import MEMORY_BYTES, run_isolated
from rlm_dspy.text import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

Kind = Literal["text", "pdf", "zip", "html"]

HEAD_BYTES = 4096
BETWEEN_PAGES = "\n\n"
ARCHIVE = (b"PK\x03\x04", b"PK\x05\x06")
"""The first bytes of ZIP archives, including Office documents and EPUB."""
ACCEPTED = "UTF-8 text, PDF, DOCX, PPTX, XLSX, EPUB, HTML, and http and https addresses"
_DOCUMENT_SECONDS = 120
_TEXT_BYTES = 128 << 20
_EXTRA = "the extra `documents`: pip install 'dspy-recursive-lm[documents]' (in the checkout: --extra documents)"

_HTML = re.compile(
    rb"\s*(<\?xml[^>]*>\s*)?((?><!--.*?-->)\s*)*<(!doctype\s+html|html[\s>])", re.IGNORECASE | re.DOTALL
)
_BINARIES = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"SQLite format 3": "an SQLite database",
    b"PAR1": "a Parquet file",
    b"\xd0\xcf\x11\xe0": "an Office file of before 2007, or an encrypted one",
    b"\x7fELF": "a program",
    b"ID3": "an MP3 sound",
    b"RIFF": "a sound, image or video",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
}
"""The kinds of files with NUL bytes, by their first bytes."""
_PROBLEMS = {
    "missing": f"{{name}} needs {_EXTRA}.",
    "encrypted": "{name} is encrypted. Give its password: Text.open(..., password=...).",
    "failed": "{name} cannot be parsed: {detail}. If another program opens it, save it anew there.",
    "archive": f"{{name}} is a ZIP archive of {{detail}}, not a document. Unpack it. Text.open reads {ACCEPTED}.",
    "memory": f"{{name}} needs more than {MEMORY_BYTES >> 20:,} MB of memory to be read. Split it.",
    "time": f"{{name}} could not be read within {_DOCUMENT_SECONDS} seconds. Split it.",
    "large": f"The text of {{name}} is larger than {_TEXT_BYTES >> 20:,} MB. Split it.",
    "crashed": f"{{name}} broke its parser: it is damaged, or needs over {MEMORY_BYTES >> 20:,} MB ({{detail}}).",
}


class Document(BaseModel):
    """The text of a document, by pages."""

    kind: str
    unit: Literal["page", "slide", "sheet", ""]
    """The word for a page of this format; empty if the format has none."""
    pages: list[str]
    names: list[str]
    """The names of sheets."""

    def marked(self) -> Iterator[tuple[str, str]]:
        """Yield each page with the line that marks it; the line is empty if the document has no separate pages."""
        has_marks = self.unit and not (self.kind == "docx" and len(self.pages) == 1)  # breaks that are in the file
        names = [f": {name}" if name else "" for name in self.names] or [""] * len(self.pages)
        for number, (page, name) in enumerate(zip(self.pages, names, strict=True), 1):
            mark = f"--- {self.unit} {number} of {len(self.pages)}{name} ---\n" if has_marks else ""
            yield mark, page.strip("\n")

    def text(self) -> str:
        """Return the pages with their marks."""
        return BETWEEN_PAGES.join(f"{mark}{page}" for mark, page in self.marked())


def kind_of(head: bytes, name: str) -> Kind:
    """Return how to read a file, by its first bytes; HTML without its first tags is recognized by the suffix.

    Args:
        head: Its first `HEAD_BYTES`.
        name: Its name.

    Raises:
        UnreadableDocument: If it is neither text nor a document.
    """
    if b"%PDF-" in head[:1024]:
        return "pdf"
    if head.startswith(ARCHIVE):
        return "zip"
    if b"\0" in head:
        what = next((what for magic, what in _BINARIES.items() if head.startswith(magic)), "a binary file")
        hint = " Pass a picture as dspy.Image." if what.endswith("image") else ""
        raise UnreadableDocument(f"{name} is {what}. Text.open reads {ACCEPTED}.{hint}")
    is_html = _HTML.match(head.removeprefix(b"\xef\xbb\xbf")) or name.lower().endswith((".html", ".htm", ".xhtml"))
    return "html" if is_html else "text"


def read_document(
    file: IO[bytes], kind: Kind, name: str, *, password: str | None = None, charset: str = ""
) -> Document:
    """Return the text of a document.

    Args:
        file: The document, unbuffered: another process reads it, from its beginning.
        kind: The result of `kind_of`.
        name: Its name in errors.
        password: The password of an encrypted PDF.
        charset: The charset of HTML, as its server gives it.

    Raises:
        UnreadableDocument: If it cannot be read within the bounds, or holds no text.
    """
    file.seek(0)
    settings = {"kind": kind, "password": password or "", "charset": charset}
    report, output = run_isolated("document", settings, file, seconds=_DOCUMENT_SECONDS, file_bytes=_TEXT_BYTES)
    with output:
        written = output.read()
    if report.problem == "encrypted" and password:
        raise UnreadableDocument(f"The password does not open {name}.")
    if report.problem:
        detail = " ".join(report.detail.split()).rstrip(".")
        raise UnreadableDocument(_PROBLEMS[report.problem].format(name=name, detail=detail))
    document = Document.model_validate_json(written)
    if not any(page.strip() for page in document.pages):
        scan = (
            f" but the pictures of {counted(len(document.pages), 'page')}. Recognize it first, e.g. with ocrmypdf"
        )
        raise UnreadableDocument(f"{name} holds no text{scan if kind == 'pdf' else ''}.")
    return document
