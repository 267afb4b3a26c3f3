"""Defines `Text`, a wrapper for long inputs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic_core import core_schema

if TYPE_CHECKING:
    import os
    from typing import BinaryIO

    from pydantic import GetCoreSchemaHandler

HEAD_CHARS = 160
READ_WHOLE_BYTES = 16_000_000
"""Size from which a file is not read to describe it."""


class Text:
    """A long text that stays short wherever it is shown: in reprs, saved examples, logs and prompts.

    In the REPL it is a plain `str`. Any input field annotated `str` or `Text` accepts it.

    Attributes:
        path: The file it stands for, or None if it was given as a `str`.
        encoding: How the file is read; `utf-8`.

    Raises:
        FileNotFoundError: From `Text.open`, if the file does not exist.
        UnicodeDecodeError: From `str(text)`, if the file is not UTF-8.
    """

    encoding = "utf-8"

    def __init__(self, value: str, *, path: Path | None = None) -> None:
        self.path = path
        self._value: str | None = str(value) if path is None else None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Text:
        """Return a text that stands for a UTF-8 file and reads it when it is needed.

        Raises:
            FileNotFoundError: If `path` is not a file.
        """
        resolved = Path(path).expanduser().resolve()
        if not resolved.is_file():
            wrong = "is not a regular file" if resolved.exists() else "does not exist"
            raise FileNotFoundError(f"{path} {wrong}. Text.open takes the path of a UTF-8 text file.")
        return cls("", path=resolved)

    def __str__(self) -> str:
        if self._value is None:
            assert self.path is not None
            try:
                self._value = self.path.read_text(encoding=self.encoding)
            except UnicodeDecodeError as error:
                error.reason = f"{error.reason}; {self.path} is not UTF-8, convert it first"
                raise
        return self._value

    def reader(self) -> BinaryIO:
        """Open the file that it stands for."""
        assert self.path is not None
        return self.path.open("rb", buffering=0)

    def digest(self) -> tuple[int, str]:
        """Return the size of the text in UTF-8 and its SHA-256 in hexadecimal. A large file is read in pieces."""
        if self._value is None and self.path and self.path.stat().st_size > READ_WHOLE_BYTES:
            with self.path.open("rb") as file:
                return self.path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
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
            with self.path.open("rb") as file:
                head = file.read(HEAD_CHARS).decode(errors="ignore")
            return f"Text({size:,} bytes of {self.path.name}: {head[:60]!r} ...)"
        source = f" of {self.path.name}" if self.path else ""
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


def shorten(text: str, head: int, tail: int) -> str:
    """Return the repr of a text, or of its first `head` and last `tail` characters."""
    if len(text) <= head + tail:
        return repr(text)
    end = f" ... {text[len(text) - tail :]!r}" if tail else " ..."
    return f"{text[:head]!r}{end}"
