"""Defines `Text`, a wrapper for long inputs, and opens files, documents and addresses as one."""

from __future__ import annotations

import codecs
import hashlib
import os
import shutil
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any

from pydantic_core import core_schema

from rlm_dspy.inputs.documents import BETWEEN_PAGES, HEAD_BYTES, kind_of, read_document
from rlm_dspy.text import expanded, real_path

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

    from pydantic import GetCoreSchemaHandler

    from rlm_dspy.inputs.documents import Document

HEAD_CHARS = 160
READ_WHOLE_BYTES = 16_000_000
"""The size from which a file is described without reading it."""


class Text:
    """A long text that stays short wherever it is shown: in reprs, saved examples, logs and prompts.

    In the REPL it is a plain `str`. Any input field annotated `str` or `Text` accepts it. `Text(value)`
    holds a `str`, `Text.open(path)` stands for a file.

    Attributes:
        path: The UTF-8 file it stands for, or None if it was given as a `str` or read from a document.
        name: The name of the file, or the address; empty if it was given as a `str`.
        encoding: How the file is read: UTF-8, without the byte order mark that it may begin with.

    Raises:
        FileNotFoundError: From `Text.open`, if the file does not exist.
        UnicodeDecodeError: From `str(text)`, if the file is not UTF-8.
    """

    encoding = "utf-8-sig"

    def __init__(self, value: str, *, path: Path | None = None) -> None:
        self.path = path
        self.name = path.name if path else ""
        self._value: str | None = str(value) if path is None else None
        self._pages: list[slice] = []

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str] | BinaryIO,
        *,
        password: str | None = None,
        allow_local: bool = False,
    ) -> Text:
        """Return a text that stands for a file, a document or a page of the web.

        A UTF-8 file is read when it is needed. PDF, DOCX, PPTX, XLSX, EPUB and HTML are recognized by their
        content and read at once, in a process with bounds of time and memory; tables and headings become Markdown.
        A line such as `--- page 3 of 12 ---` stands before each page, slide and sheet. DOCX has pages only where
        it has page breaks, EPUB and HTML have none.

        Args:
            path: The file, or an `http` or `https` address; that is fetched within 30 seconds and 100 MB. An open
                binary file, e.g. a pipe, is read to its end.
            password: The password of an encrypted PDF.
            allow_local: Whether an address may lead to this machine or its network.

        Raises:
            TypeError: If `path` is of another type.
            FileNotFoundError: If `path` is not a file.
            OSError: If it is a link that leads back to itself.
            UnreadableDocument: If it is neither text nor a document that can be read within the bounds, or
                the extra `documents` is not installed.
            UnreachableAddress: If an address is not allowed or cannot be fetched.
            UnicodeDecodeError: If an open file holds neither UTF-8 nor a document.
        """
        if not isinstance(path, str | os.PathLike):
            if not hasattr(path, "read"):
                raise TypeError(f"Text.open takes a path, an address or an open binary file, not {path!r}.")
            with TemporaryFile(buffering=0) as copy:
                _copy(path, copy)
                text = cls._document(copy, "the file", password)
                copy.seek(0)
                return cls(copy.read().decode(cls.encoding)) if text is None else text
        if "://" in str(path):
            from rlm_dspy.inputs.addresses import read_address, without_credentials  # noqa: PLC0415 (rarely needed)

            document = read_address(str(path), password=password, allow_local=allow_local)
            return cls._of(document, without_credentials(str(path)))
        resolved = real_path(expanded(path))
        if not resolved.is_file():
            wrong = "is not a regular file" if resolved.exists() else "does not exist"
            raise FileNotFoundError(
                f"{path} {wrong}. Text.open takes the path of a UTF-8 text file or a document."
            )
        with resolved.open("rb", buffering=0) as file:
            text = cls._document(file, str(path), password)
        if text is None:
            return cls("", path=resolved)
        text.name = resolved.name
        return text

    @classmethod
    def _document(cls, file: IO[bytes], name: str, password: str | None) -> Text | None:
        """Return the text of a document; None if it is not a document. The file must be unbuffered."""
        file.seek(0)
        kind = kind_of(file.read(HEAD_BYTES), name)
        return None if kind == "text" else cls._of(read_document(file, kind, name, password=password), name)

    @classmethod
    def _of(cls, document: Document, name: str) -> Text:
        """Return the text of a document."""
        pages, end = [], 0
        for mark, page in document.marked():
            pages.append(slice(end + len(mark), end + len(mark) + len(page)))
            end = pages[-1].stop + len(BETWEEN_PAGES)
        text = cls(document.text())
        text.name, text._pages = name, pages if document.unit else []
        return text

    def with_content(self, content: str) -> Text:
        """Return a text of this name and with these pages, with another content and no file."""
        text = Text(content)
        text.name, text._pages = self.name, self._pages
        return text

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the path of a file without its content."""
        return vars(self) if self.path is None else {**vars(self), "_value": None}

    @property
    def pages(self) -> list[str]:
        """The pages, slides or sheets of a document, without the marks before them; empty for other texts."""
        return [str(self)[page] for page in self._pages]

    def __str__(self) -> str:
        if self._value is None:
            assert self.path is not None
            try:
                self._value = self.path.read_text(encoding=self.encoding)
            except UnicodeDecodeError as error:
                error.reason = f"{error.reason}; {self.path} is not UTF-8, convert it first"
                raise
        return self._value

    def beginning(self, chars: int) -> str:
        """Return the first characters. A large file is not read whole."""
        if self._value is None and self.path and self.path.stat().st_size > READ_WHOLE_BYTES:
            with self.path.open("rb") as file:
                return file.read(4 * chars).decode(self.encoding, errors="ignore")[:chars]
        return str(self)[:chars]

    def reader(self) -> BinaryIO:
        """Open the file of this text."""
        assert self.path is not None
        return self.path.open("rb", buffering=0)

    def digest(self) -> tuple[int, str]:
        """Return the size of the text in UTF-8 and its SHA-256 in hexadecimal. A large file is read in pieces."""
        if self._value is None and self.path and self.path.stat().st_size > READ_WHOLE_BYTES:
            with self.path.open("rb") as file:
                marked = len(codecs.BOM_UTF8) if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0
                file.seek(marked)
                size = self.path.stat().st_size - marked
                return size, hashlib.file_digest(file, "sha256").hexdigest()
        content = str(self).encode("utf-8", "surrogatepass")
        return len(content), hashlib.sha256(content).hexdigest()

    def __len__(self) -> int:
        """Return the length in characters."""
        return len(str(self))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Text):
            return (self.path is not None and self.path == other.path) or str(self) == str(other)
        return isinstance(other, str) and str(self) == other

    def __hash__(self) -> int:
        return hash(str(self))

    def __repr__(self) -> str:
        """Return one line with the name and size of the text, never the whole text. A large file is not read."""
        if self._value is None and self.path and (size := self.path.stat().st_size) > READ_WHOLE_BYTES:
            return f"Text({size:,} bytes of {self.path.name}: {self.beginning(60)!r} ...)"
        source = f" of {self.name}" if self.name else ""
        return f"Text({len(self):,} characters{source}: {shorten(str(self), 60, 0)})"

    def toDict(self) -> str:  # noqa: N802  # DSPy asks for this name when it saves examples
        """Return the short form, for saved examples."""
        return repr(self)

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[Text], handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """Accept a `Text` or a `str`; write the short form."""
        return core_schema.no_info_plain_validator_function(
            lambda value: value if isinstance(value, cls) else cls(value),
            serialization=core_schema.plain_serializer_function_ser_schema(repr),
        )


def _copy(source: BinaryIO, copy: IO[bytes]) -> None:
    """Copy a file that may have no end; if its first bytes show that it cannot be read, reject it at once."""
    head, name = b"", getattr(source, "name", None)
    while len(head) < HEAD_BYTES and (data := source.read(HEAD_BYTES - len(head))):
        head += data
    if kind_of(head, name if isinstance(name, str) else "the file") == "text":
        codecs.getincrementaldecoder(Text.encoding)().decode(head)
    copy.write(head)
    shutil.copyfileobj(source, copy)


def shorten(text: str, head: int, tail: int) -> str:
    """Return the repr of a text, or of its first `head` and last `tail` characters."""
    if len(text) <= head + tail:
        return repr(text)
    end = f" ... {text[len(text) - tail :]!r}" if tail else " ..."
    return f"{text[:head]!r}{end}"
