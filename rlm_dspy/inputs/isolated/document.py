"""Turns a document into text: a job of `run_isolated`.

The document is standard input; its text goes to standard output in JSON. Before it parses the document, the
process gives up the right to open files and sockets, so that a hostile file can reach nothing. PDFium reads PDF,
because it separates columns and words better; `xberg` reads all other formats.
"""

from __future__ import annotations

import asyncio
import codecs
import io
import json
import re
import sys
import zipfile
from typing import TYPE_CHECKING, Any

from .job import Bounds, Refused, Settings

if TYPE_CHECKING:
    from collections.abc import Callable

_OFFICE = "application/vnd.openxmlformats-officedocument."
_PARTS = {
    "word/document.xml": ("docx", f"{_OFFICE}wordprocessingml.document"),
    "ppt/presentation.xml": ("pptx", f"{_OFFICE}presentationml.presentation"),
    "xl/workbook.xml": ("xlsx", f"{_OFFICE}spreadsheetml.sheet"),
    "META-INF/container.xml": ("epub", "application/epub+zip"),
}
"""The part that identifies the kind of document in a ZIP archive."""
_UNITS = {"pdf": "page", "docx": "page", "pptx": "slide", "xlsx": "sheet"}
_META_CHARSET = re.compile(rb"""<meta[^>]{1,200}charset=["']?([\w-]{1,40})""", re.IGNORECASE)
_HEAD_BYTES = 4096
_DAMAGED_PAGE = "[This page is damaged and could not be read.]"


class DocumentSettings(Settings):
    """The settings of the job."""

    kind: str
    """`pdf`, `zip` or `html`."""
    charset: str
    """The charset of HTML by its server; empty if unknown."""
    password: str


def main(settings: DocumentSettings, bounds: Bounds) -> dict[str, str]:
    """Read the document from standard input, write its text, and return the report."""
    data, kind, media_type = sys.stdin.buffer.read(), settings["kind"], "text/html"
    if kind == "zip":
        kind, media_type = _kind_of_archive(data)
    elif kind == "html":
        data = _in_utf8(data, settings["charset"])
    read = _pdf_reader(settings["password"]) if kind == "pdf" else _xberg_reader(media_type, bounds.close_files)
    bounds.close_files()
    bounds.close_descriptors()
    pages, names_of_pages = read(data)
    text = {"kind": kind, "unit": _UNITS.get(kind, ""), "pages": pages, "names": names_of_pages}
    sys.stdout.buffer.write(json.dumps(text, ensure_ascii=False).encode("utf-8", "replace"))
    sys.stdout.buffer.flush()
    return {}


def _kind_of_archive(data: bytes) -> tuple[str, str]:
    try:
        parts = set(zipfile.ZipFile(io.BytesIO(data)).namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise Refused("failed", str(error)) from error
    for part, found in _PARTS.items():
        if part in parts:
            return found
    raise Refused("archive", f"{len(parts):,} files")


def _pdf_reader(password: str) -> Callable[[bytes], tuple[list[str], list[str]]]:
    import pypdfium2

    codecs.lookup("utf-16-le")  # PDFium's text module is loaded while files can still be opened

    def text_of(document: Any, number: int) -> str:
        try:
            text = str(document[number].get_textpage().get_text_bounded())
        except pypdfium2.PdfiumError:
            return _DAMAGED_PAGE
        return text.replace("\r\n", "\n").replace("\ufffe", "")  # PDFium's mark for a hyphen at the end of a line

    def read(data: bytes) -> tuple[list[str], list[str]]:
        try:
            document = pypdfium2.PdfDocument(data, password=password or None)
        except pypdfium2.PdfiumError as error:
            needs_password = error.err_code == pypdfium2.raw.FPDF_ERR_PASSWORD
            raise Refused("encrypted" if needs_password else "failed", str(error)) from error
        pages = [text_of(document, number) for number in range(len(document))]
        if all(page == _DAMAGED_PAGE for page in pages):
            raise Refused("failed", f"none of its {len(pages):,} pages can be read")
        return pages, []

    return read


def _xberg_reader(media_type: str, close_files: Callable[[], None]) -> Callable[[bytes], Any]:
    import xberg

    config = xberg.ExtractionConfig(
        content_filter=xberg.ContentFilterConfig(
            include_headers=True, include_footers=True, include_footnotes=True, strip_repeating_text=False
        ),
        disable_ocr=True,
        enable_quality_processing=False,
        escape_markdown=False,
        html_options=xberg.ConversionOptions(
            extract_metadata=False, preprocessing=xberg.PreprocessingOptions(remove_navigation=False)
        ),
        max_archive_depth=0,
        output_format="markdown",
        pages=xberg.PageConfig(extract_pages=True),
        # Memory and time are bounded for the whole process; its defaults refuse tables of 100,000 cells.
        security_limits=xberg.SecurityLimits(
            max_compression_ratio=1000, max_content_size=1 << 30, max_iterations=1 << 40, max_table_cells=1 << 30
        ),
        use_cache=False,
    )
    loop = asyncio.new_event_loop()

    def extract(data: bytes, media_type: str) -> Any:
        given = xberg.ExtractInput(kind="bytes", bytes=data, mime_type=media_type)
        (document,) = loop.run_until_complete(xberg.extract(given, config)).results
        return document

    def read(data: bytes) -> tuple[list[str], list[str]]:
        try:
            document = extract(data, media_type)
        except (xberg.XbergError, RuntimeError) as error:  # it raises either
            raise Refused("failed", str(error)) from error
        pages = document.pages or []
        if not any(page.content.strip() for page in pages):
            return [document.content], []
        texts = [
            f"{page.content}\n\nNotes: {page.speaker_notes}" if page.speaker_notes else page.content
            for page in pages
        ]
        return texts, [page.sheet_name or "" for page in pages]

    close_files()
    extract(b"<p>", "text/html")  # starts the threads while they can still open descriptors
    return read


def _in_utf8(data: bytes, charset: str) -> bytes:
    """Return HTML in UTF-8, by its byte order mark, its server's charset, or its own; UTF-8 without any."""
    declared = _META_CHARSET.search(data[:_HEAD_BYTES])
    marks = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    marked = next((encoding for mark, encoding in marks.items() if data.startswith(mark)), "")
    encoding = marked or charset or (declared[1].decode("ascii") if declared else "utf-8")
    if encoding.lower() in ("iso-8859-1", "latin-1", "latin1", "ascii", "us-ascii"):
        encoding = "cp1252"  # as browsers do
    try:
        return data.decode(encoding, "replace").encode("utf-8", "replace")
    except LookupError:
        return data
