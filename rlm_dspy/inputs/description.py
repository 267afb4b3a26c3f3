"""Describes each variable of the REPL to the model."""

from __future__ import annotations

import builtins
import enum
from typing import TYPE_CHECKING, Any, Literal

import dspy
from pydantic import BaseModel, ConfigDict

from rlm_dspy.inputs.host_input import HostInput
from rlm_dspy.inputs.media import MEDIA, media_facts
from rlm_dspy.inputs.records import Record, Row
from rlm_dspy.inputs.tables import Table, about_table
from rlm_dspy.inputs.text import HEAD_CHARS, READ_WHOLE_BYTES, Text, shorten
from rlm_dspy.text import ShortRepr, with_note

if TYPE_CHECKING:
    from pathlib import Path

_WHOLE_CHARS = 400
_TAIL_CHARS = 80
_LEFT_OUT = "... [left out] ..."


class _Preview(ShortRepr):
    """Writes a short `repr`. If something is left out it is not valid Python, so no model copies it as code."""

    def __init__(self, chars: int) -> None:
        super().__init__(chars)
        self.fillvalue = _LEFT_OUT

    def repr_str(self, x: str, level: int) -> str:
        """Return the two ends of a long text, each in quotes."""
        half = self.maxstring // 2
        return repr(x) if len(x) <= self.maxstring else f"{x[:half]!r} {self.fillvalue} {x[-half:]!r}"

    repr_bytes = repr_str


_PREVIEW = _Preview(HEAD_CHARS)


def plain(value: Any, *, depth: int = 4) -> Any:
    """Return the value that the REPL binds for an input: the `str` of a `Text`, any other value unchanged.

    A list, tuple or dict with a `Text` in it is copied, with its `str` in that place; others stay the same object.

    Args:
        value: The input.
        depth: How many levels of lists, tuples and dicts are searched.
    """
    if isinstance(value, Text):
        return str(value)
    if not _holds_text(value, depth):
        return value
    if not isinstance(value, dict):
        parts = [plain(item, depth=depth - 1) for item in value]
        return tuple(parts) if type(value) is tuple else parts
    return {key: plain(item, depth=depth - 1) for key, item in value.items()}


def _holds_text(value: Any, depth: int) -> bool:
    is_sequence = isinstance(value, list) or type(value) is tuple
    items = value.values() if isinstance(value, dict) else value if is_sequence else ()
    return isinstance(value, Text) or (depth > 0 and any(_holds_text(item, depth - 1) for item in items))


class Variable(BaseModel):
    """A variable of the REPL, as the model sees it. `str` gives the line."""

    model_config = ConfigDict(frozen=True)

    name: str
    """The name in the REPL."""
    type: str
    """Its type, as code would write it."""
    value: str
    """A short value itself; for a longer one its size, beginning and end, which are not a Python literal."""
    long: bool = False
    """Whether only a part of the value is shown."""
    form: Literal["", "rows", "entries"] = ""
    """What a long text consists of, if it is that: rows of a table, lines of one form, or records; or else entries
    of a log, lines that begin with the same marks. Not shown."""
    media: bool = False
    """Whether the REPL holds only a handle for it."""
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
    if isinstance(value, Text) and value.path and value.path.stat().st_size > READ_WHOLE_BYTES:
        return Variable(name=name, type="str", value=_large_file(value.path), long=True, note=note)
    if isinstance(value, HostInput):
        text = f"{value.about}; {value.usage.format(name)}"
        return Variable(name=name, type=type(value).__name__, value=text, long=True, note=note)
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
    shown, is_long = _of_rows(value) or _in_part(value)
    return Variable(name=name, type=kind, value=f"{size}{shown}", long=is_long, note=note)


def is_frame(value: Any) -> bool:
    """Whether a value is a DataFrame of pandas or an Arrow table; neither is imported for this."""
    package = type(value).__module__.partition(".")[0]
    names = {"pyarrow": ("num_rows", "slice"), "pandas": ("columns",)}.get(package, ())
    return bool(names) and all(hasattr(value, name) for name in names)


def _of_rows(value: Any) -> tuple[str, bool] | None:
    """Describe a DataFrame or an Arrow table, with the note that it is not whole; return None for other values."""
    if not is_frame(value):
        return None
    if hasattr(value, "num_rows"):
        return Table(value).about, True
    columns = zip(map(str, value.columns), map(str, value.dtypes), value.isna().sum().tolist(), strict=True)
    examples = [
        dict(zip(map(str, value.columns), row, strict=True)) for row in value.head(3).itertuples(index=False)
    ]
    return about_table(len(value), list(columns), examples), True


def about(media: dspy.Image | dspy.Audio | dspy.File) -> str:
    """Describe an image, a sound or a file in one line: its type and size, or its address."""
    facts = media_facts(media)
    named = (media.filename or media.file_id or "") if isinstance(media, dspy.File) else ""
    if facts["size"] is None:
        return named or shorten(media.url if isinstance(media, dspy.Image) else "", 80, 20)
    pixels = f"{facts['width']} x {facts['height']} pixels" if facts["width"] else ""
    return ", ".join(filter(None, (named, facts["media_type"], f"{facts['size']:,} bytes", pixels)))


def _large_file(path: Path) -> str:
    """Return size, beginning and end of a file without reading all of it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEAD_CHARS * 4).decode("utf-8-sig", errors="ignore")[:HEAD_CHARS]
        file.seek(size - _TAIL_CHARS * 4)
        tail = file.read().decode(errors="ignore")[-_TAIL_CHARS:]
    return f"{size:,} bytes of UTF-8: {_bare(head)} ... [left out] ... {_bare(tail)}"


def _sized(text: str) -> str:
    if len(text) <= _WHOLE_CHARS:
        return repr(text)
    return f"{len(text):,} characters: {_ends(_bare(text[:HEAD_CHARS]), text, _bare(text[-_TAIL_CHARS:]))}"


def _bare(text: str) -> str:
    """Return a text on one line without quotes: small models copy a quoted one into an assignment."""
    return repr(text)[1:-1]


def _ends(head: str, text: str, tail: str) -> str:
    """Return the two ends of a text on one line, with a note between them that is not valid Python."""
    return with_note(head, len(text) - HEAD_CHARS - _TAIL_CHARS, tail).replace("\n", " ")


def _in_part(value: Any) -> tuple[str, bool]:
    """Return a repr that is short for any size of value, and whether something is left out of it."""
    try:
        text = repr(value) if isinstance(value, BaseModel) else _PREVIEW.repr(value)
    except ValueError as error:  # an int with more digits than Python prints
        return f"({error})", True
    if len(text) <= _WHOLE_CHARS:
        return text, _LEFT_OUT in text
    return _ends(text[:HEAD_CHARS], text, text[-_TAIL_CHARS:]), True
