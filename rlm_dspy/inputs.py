"""Defines `Text`, a wrapper for long inputs, and describes each variable to the model."""

from __future__ import annotations

import builtins
import enum
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
from pydantic import BaseModel, ConfigDict
from pydantic_core import core_schema

from rlm_dspy.text import ShortRepr

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from pydantic import GetCoreSchemaHandler

_WHOLE_CHARS = 400
_HEAD_CHARS = 160
_TAIL_CHARS = 80
_READ_WHOLE_BYTES = 16_000_000
_SHORT = ShortRepr(_HEAD_CHARS)


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

    def digest(self) -> tuple[int, str]:
        """Return the size of the text in UTF-8 and its SHA-256 in hexadecimal. A large file is read in pieces."""
        if self._value is None and self.path and self.path.stat().st_size > _READ_WHOLE_BYTES:
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
        if self._value is None and self.path and (size := self.path.stat().st_size) > _READ_WHOLE_BYTES:
            with self.path.open("rb") as file:
                head = file.read(_HEAD_CHARS).decode(errors="ignore")
            return f"Text({size:,} bytes of {self.path.name}: {head[:60]!r} ...)"
        source = f" of {self.path.name}" if self.path else ""
        return f"Text({len(self):,} characters{source}: {_shorten(str(self), 60, 0)})"

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


class Record(dict[str, Any]):
    """The fields of an object from the REPL, or of the REPL's stand-in for a host object.

    Attributes:
        name: The name of its class.
        kind: `model`, `dataclass` or `prediction`.
    """

    def __init__(self, kind: str, name: str, fields: Mapping[str, Any]) -> None:
        super().__init__(fields)
        self.kind = kind
        self.name = name

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.items())})"


class Row(tuple[Any, ...]):  # noqa: SLOT001 (it has a name and fields)
    """The values of a namedtuple from the REPL, in order.

    Attributes:
        name: The name of its class.
    """

    name: str
    _fields: tuple[str, ...]

    @classmethod
    def of(cls, name: str, fields: Mapping[str, Any]) -> Row:
        """Return a row of values with these names."""
        row = cls(fields.values())
        row.name, row._fields = name, tuple(fields)
        return row

    def _asdict(self) -> dict[str, Any]:
        return dict(zip(self._fields, self, strict=True))

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self._asdict().items())})"


def plain(value: Any, *, depth: int = 4) -> Any:
    """Return what the REPL binds for an input: the `str` of a `Text`, any other value as it is.

    Lists and dicts that hold a `Text` are copied with its `str` in its place; others stay the same object.

    Args:
        value: The input.
        depth: How many levels of lists and dicts are searched.
    """
    if isinstance(value, Text):
        return str(value)
    if not _holds_text(value, depth):
        return value
    if isinstance(value, list):
        return [plain(item, depth=depth - 1) for item in value]
    return {key: plain(item, depth=depth - 1) for key, item in value.items()}


def _holds_text(value: Any, depth: int) -> bool:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, Text) or (depth > 0 and any(_holds_text(item, depth - 1) for item in items))


class Variable(BaseModel):
    """A variable of the REPL, as the model sees it. `str` gives the line."""

    model_config = ConfigDict(frozen=True)

    name: str
    type: str
    value: str
    """The value if it is short; else its size, its beginning and its end."""
    long: bool = False
    """Whether only the beginning and end of the text are shown."""
    media: bool = False
    """Whether the REPL holds only a handle of it."""
    note: str = ""
    """The field's description and constraints."""

    def __str__(self) -> str:
        use = f"; pass it to sub-calls, llm_query(prompt, {self.name}), SUBMIT" if self.media else ""
        hides = f"shadows Python's {self.name}; use builtins.{self.name}" if hasattr(builtins, self.name) else ""
        note = "; ".join(filter(None, (self.note, hides)))
        return f"{self.name}: {self.type}, {self.value}{use}{f'  # {note}' if note else ''}"


def describe(name: str, value: Any, note: str = "") -> Variable:
    """Describe a variable to the model.

    Short values are shown whole; long ones as type, size, beginning and end.

    Args:
        name: The variable's name in the REPL.
        value: Its value.
        note: A further note on it.
    """
    if isinstance(value, Text) and value.path and value.path.stat().st_size > _READ_WHOLE_BYTES:
        return Variable(name=name, type="str", value=_large_file(value.path), long=True, note=note)
    value = plain(value)
    if isinstance(value, dspy.SandboxSerializable):
        setup = f" (after `{value.sandbox_setup()}`)" if value.sandbox_setup() else ""
        return Variable(name=name, type=f"{type(value).__name__}{setup}", value=value.rlm_preview(), note=note)
    if isinstance(value, str) and not isinstance(value, enum.Enum):
        is_long = len(value) > _WHOLE_CHARS
        return Variable(name=name, type="str", value=_sized(value), long=is_long, note=note)
    if isinstance(value, MEDIA):
        return Variable(name=name, type=type(value).__name__, value=about(value), media=True, note=note)
    sized = isinstance(value, list | tuple | dict | set | frozenset) and not hasattr(value, "_fields")
    size = f"{len(value):,} items, " if sized and not isinstance(value, Record) else ""
    kind = value.name if isinstance(value, Record | Row) else type(value).__name__
    return Variable(name=name, type=kind, value=f"{size}{_cut(_readable(value))}", note=note)


def about(media: dspy.Image | dspy.Audio | dspy.File) -> str:
    """Describe an image, a sound or a file in one line: its type and size, or its address."""
    if isinstance(media, dspy.Image):
        data, told = media.url, ""
    elif isinstance(media, dspy.Audio):
        return f"audio/{media.audio_format}, {len(media.data) * 3 // 4:,} bytes"
    else:
        data, told = media.file_data or "", media.filename or media.file_id or ""
    head, _, encoded = data.partition(";base64,")
    size = f"{head.removeprefix('data:')}, {len(encoded) * 3 // 4:,} bytes" if encoded else _shorten(data, 80, 20)
    return f"{told}, {size}" if told and data else told or size


def _large_file(path: Path) -> str:
    """Return size, beginning and end of a file without reading all of it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD_CHARS * 4).decode(errors="ignore")[:_HEAD_CHARS]
        file.seek(size - _TAIL_CHARS * 4)
        tail = file.read().decode(errors="ignore")[-_TAIL_CHARS:]
    return f"{size:,} bytes of UTF-8: {head!r} ... {tail!r}"


def _sized(text: str) -> str:
    if len(text) <= _WHOLE_CHARS:
        return repr(text)
    return f"{len(text):,} characters: {_shorten(text, _HEAD_CHARS, _TAIL_CHARS)}"


def _readable(value: Any) -> str:
    """Return a repr that is short for any size of value."""
    try:
        return repr(value) if isinstance(value, BaseModel) else _SHORT.repr(value)
    except ValueError as error:  # an int with more digits than Python prints
        return f"({error})"


def _cut(text: str) -> str:
    return text if len(text) <= _WHOLE_CHARS else f"{text[:_HEAD_CHARS]} ... {text[len(text) - _TAIL_CHARS :]}"


def _shorten(text: str, head: int, tail: int) -> str:
    if len(text) <= head + tail:
        return repr(text)
    end = f" ... {text[len(text) - tail :]!r}" if tail else " ..."
    return f"{text[:head]!r}{end}"


MEDIA = (dspy.Image, dspy.Audio, dspy.File)
"""Types that the REPL holds as handles; a model that is asked about one gets the content."""
