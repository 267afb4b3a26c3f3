"""Encodes and decodes values on the host's side of the REPL; the other side is `in_repl/value_codec.py`.

Values that JSON cannot express carry a mark: objects of the host's classes with the names of their fields, values
of Python's own types with the name of the type. No name from a REPL is looked up: a mark becomes a value of one of
the types below, or a `Record`.
"""

from __future__ import annotations

import base64
import copy
import datetime as dt
import functools
import hashlib
import math
import threading
from collections import deque
from dataclasses import dataclass, field, is_dataclass
from dataclasses import fields as fields_of
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from uuid import UUID

import dspy
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_jsonable_python

from rlm_dspy._dspy_compat import CUSTOM_TYPE_MARK as _MARK
from rlm_dspy.inputs import MEDIA, Files, HostInput, Record, Row, Text, plain
from rlm_dspy.inputs.media import check_media_size
from rlm_dspy.json_values import fields_of_model, parts_of
from rlm_dspy.repl.coercion import read_value
from rlm_dspy.repl.stand_ins import described
from rlm_dspy.repl.type_names import alternatives, holds_media
from rlm_dspy.text import ShortRepr, clip, sendable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pydantic import JsonValue
    from typing_extensions import TypeForm

RECORD, TYPE = "__record__", "__type__"
_FEW_TYPES = 8
_MOST_READINGS = 500_000
"""Maximum number of (part, union type) pairs; each takes about 280 bytes."""
_SEQUENCES = (list, tuple, set, frozenset, deque)
_SIMPLE = (str, int, bool, type(None))
_WRITTEN: dict[type, tuple[str, Callable[[Any], Any]]] = {
    bytes: ("bytes", lambda value: base64.b64encode(value).decode()),
    dt.datetime: ("datetime", dt.datetime.isoformat),
    dt.date: ("date", dt.date.isoformat),
    dt.time: ("time", dt.time.isoformat),
    dt.timedelta: ("timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
    Decimal: ("Decimal", str),
    Fraction: ("Fraction", str),
    UUID: ("UUID", str),
    complex: ("complex", str),
}
_MADE: dict[str, Callable[[Any], Any]] = {
    "bytes": lambda text: base64.b64decode(text, validate=True),
    "datetime": dt.datetime.fromisoformat,
    "date": dt.date.fromisoformat,
    "time": dt.time.fromisoformat,
    "timedelta": lambda parts: dt.timedelta(*parts),
    "float": float,
    "tuple": tuple,
    "dict": dict,
}


@dataclass(eq=False)
class Media:
    """The images, sounds, files, folders and tables of a tree of runs, by their name in the REPLs."""

    _known: dict[str, dspy.Type | HostInput] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def key(self, media: dspy.Type | HostInput) -> str:
        """Return the name of an image, a sound or a file, equal for equal content; else its own."""
        if isinstance(media, HostInput):
            key = media.key
        else:
            if isinstance(media, MEDIA):
                check_media_size(media)
            content = media.model_dump_json().encode("utf-8", "surrogatepass")
            key = hashlib.sha256(content).hexdigest()[:12]
        with self._lock:
            self._known.setdefault(key, media)
        return key

    def __getitem__(self, key: str) -> dspy.Type | HostInput:
        """Return the image, sound, file, folder or table of a name.

        Raises:
            ValueError: If no REPL of this tree has an object of this name.
        """
        with self._lock:
            if key not in self._known:
                raise ValueError("this REPL was not given such an image, sound or file")
            return self._known[key]

    def read(self, key: str, parts: Sequence[tuple[str, int]] = (), whole: str = "") -> Any:
        """Return what code asks for from a folder: pieces of files as from `Files.fetch`, or a file as a text.

        Raises:
            ValueError: If no REPL of this tree has a folder of this name.
            KeyError: If it has no such file.
        """
        files = self[key]
        if not isinstance(files, Files):
            raise ValueError("this is not a folder")  # noqa: TRY004 (the REPL made the key)
        return files.whole(whole) if whole else files.fetch(parts)


def sent(value: Any, media: Media | None = None, *, strict: bool = False) -> JsonValue:
    """Encode a value for a REPL as JSON-like data with marks, recursing once per level.

    Args:
        value: Any value.
        media: Stores images, sounds and files, which are sent by name; None to send their content.
        strict: Whether to reject values that cannot be encoded, instead of sending their `repr`.

    Raises:
        TypeError: If it cannot be encoded and `strict` is set.
    """
    if type(value) in _SIMPLE or isinstance(value, Text | dspy.Reasoning):
        return value if type(value) in _SIMPLE else str(value)
    if (found := described(value, media.key if media else None)) is not None:
        kind, name, fields = found
        return {RECORD: name, "kind": kind, "fields": _sent_items(fields, media, strict)}
    if not isinstance(value, dict | list | tuple | set | frozenset):
        return _sent_scalar(value, strict=strict)
    if isinstance(value, dict) and all(type(key) is str and key not in (RECORD, TYPE) for key in value):
        return _sent_items(value, media, strict)
    items = []
    for item in map(list, value.items()) if isinstance(value, dict) else value:
        items += [item if type(item) in _SIMPLE else sent(item, media, strict=strict)]
    if isinstance(value, list):
        return items
    made = next(kind for kind in (dict, tuple, set, frozenset) if isinstance(value, kind))
    return {TYPE: made.__name__, "value": items}


def _sent_items(fields: Mapping[Any, Any], media: Media | None, strict: bool) -> dict[str, JsonValue]:
    items = {}
    for key, item in fields.items():
        items[str(key)] = item if type(item) in _SIMPLE else sent(item, media, strict=strict)
    return items


def _sent_scalar(value: Any, *, strict: bool) -> JsonValue:
    if isinstance(value, float) and not math.isfinite(value):
        return {TYPE: "float", "value": str(float(value))}
    for kind, (name, written) in _WRITTEN.items():
        if type(value) is kind:
            return {TYPE: name, "value": written(value)}
    if isinstance(value, PurePath):
        return {TYPE: "Path", "value": str(value)}
    try:
        plain: JsonValue = to_jsonable_python(value, fallback=None if strict else repr, inf_nan_mode="strings")
    except (PydanticSerializationError, UnicodeError) as error:
        raise TypeError(str(error)) from error
    return plain


def taken(value: Any, media: Media) -> Any:
    """Decode the marks in a value from a REPL; return the same object if there are none.

    Raises:
        ValueError: If a mark is invalid, or the value is nested too deeply.
    """
    try:
        return _taken(value, media)
    except (ValueError, TypeError, KeyError, OverflowError, InvalidOperation, AttributeError) as error:
        raise ValueError(f"a value that cannot be read: {error}") from error
    except RecursionError:
        raise ValueError("a value that is nested too deeply") from None


def _taken(value: Any, media: Media) -> Any:
    if type(value) is list:
        items = []
        for item in value:
            items += [item if type(item) in _SIMPLE else _taken(item, media)]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    if type(value) is not dict:
        return value
    if TYPE in value:
        return _MADE[value[TYPE]](_taken(value["value"], media))
    if RECORD in value and value["kind"] == "media":
        return media[value["fields"]["key"]]
    given = value["fields"] if RECORD in value else value
    fields = {}
    for key, item in given.items():
        fields[key] = item if type(item) in _SIMPLE else _taken(item, media)
    if RECORD in value:
        kind, name = str(value["kind"]), str(value[RECORD])
        return Row.of(name, fields) if kind == "namedtuple" else Record(kind, name, fields)
    return fields if any(fields[key] is not given[key] for key in given) else value


def without_media_marks(value: Any) -> Any:
    """Return a text, or containers, models and dataclasses of texts, without marks that DSPy reads as media.

    DSPy writes media into a prompt as marked JSON, and reads every mark in it. A mark in a document could make the
    model's server fetch any address. If there is no mark, the same object is returned.
    """
    if isinstance(value, str):
        return value.replace(_MARK, f"< {_MARK[1:]}") if _MARK in value else value
    if isinstance(value, dict):
        parts = [*dict.keys(value), *dict.values(value)]
        new = without_media_marks(parts)
        return value if new is parts else dict(zip(new[: len(value)], new[len(value) :], strict=True))
    if isinstance(value, _SEQUENCES):
        parts = list(value)
        items = [without_media_marks(item) for item in parts]
        if all(new is old for new, old in zip(items, parts, strict=True)):
            return value
        make = getattr(value, "_make", None) or next(kind for kind in _SEQUENCES if isinstance(value, kind))
        return make(items)
    if isinstance(value, BaseModel) and not isinstance(value, MEDIA):
        fields = fields_of_model(value)
        new = without_media_marks(fields)
        return value if new is fields else value.model_copy(update=new)
    if is_dataclass(value) and not isinstance(value, type):
        fields = {item.name: getattr(value, item.name) for item in fields_of(value)}
        if (new := without_media_marks(fields)) is not fields:
            value = copy.copy(value)
            for name, item in new.items():
                object.__setattr__(value, name, item)  # it may be frozen
    return value


def across(tool: Callable[..., Any], media: Media, *, plain: bool) -> Callable[..., Any]:
    """Wrap a host function for code in a REPL: decode its arguments and encode its result.

    Args:
        tool: The function.
        media: Stores images, sounds and files.
        plain: Whether its result must be JSON-like, for foreign interpreters.
    """

    @functools.wraps(tool)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = tool(*taken(list(args), media), **taken(kwargs, media))
        return _without_marks(result) if plain else result

    return call


def _without_marks(value: Any) -> Any:
    """Return a tool's result as JSON-like data; unchanged if impossible, so that the interpreter rejects it."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        value = dict(zip(value._fields, value, strict=False))
    try:
        return to_jsonable_python(value, inf_nan_mode="null")
    except (PydanticSerializationError, UnicodeError, ValueError):
        return value


def received(value: Any, annotation: TypeForm[Any]) -> Any:
    """Convert a value from the REPL, or an input of the run, to the type of an input field.

    Raises:
        ValueError: If it does not fit; the message names the expected type and the value. Also if code gives an
            address for an image or a file, because fetching it could leak data that code wrote into the address.
    """
    if isinstance(value, HostInput):
        if annotation is type(value):
            return value
        kind = type(value).__name__
        raise ValueError(
            f"a {kind} goes to rlm_query, or to a field of type {kind}; pass a text of it: {value.as_text}"
        )
    if type(value) is not str:
        value = plain(value)
    value = without_media_marks(value)
    if annotation in (Any, object) or (annotation is str and type(value) is str):
        return value
    _check_size(value, annotation)
    found = read_value(value, annotation)
    if holds_media(annotation):
        known = {id(media) for media in _media_in(value)}
        if any(id(media) not in known and _is_address(media) for media in _media_in(found)):
            raise ValueError(
                "code may not pass a URL: pass an image or a file that is an input of this run, or the data "
                "itself ('data:image/png;base64,...')"
            )
    return found


def _check_size(value: Any, annotation: TypeForm[Any]) -> None:
    """Check that validation does not need gigabytes: pydantic keeps an error for each part and union type."""
    types = alternatives(annotation)
    if types > _FEW_TYPES and _count_parts(value, _MOST_READINGS // types) > _MOST_READINGS // types:
        raise ValueError(
            f"more than {_MOST_READINGS // types:,} parts for unions of {types} types; pass fewer items at once"
        )


def _count_parts(value: Any, most: int) -> int:
    """Return the number of values in a value, or a number above `most` if there are more."""
    count, waiting = 0, [value]
    while waiting and count <= most:
        parts = parts_of(waiting.pop()) or ()
        count += len(parts)
        waiting += parts.values() if isinstance(parts, dict) else parts
    return count


def _media_in(value: Any) -> Iterator[dspy.Type]:
    """Yield the images, sounds and files in a value."""
    if isinstance(value, MEDIA):
        yield value
        return
    parts = parts_of(value) or ()
    for part in parts.values() if isinstance(parts, dict) else parts:
        yield from _media_in(part)


def _is_address(media: dspy.Type) -> bool:
    """Whether an image or a file is only an address to fetch."""
    if isinstance(media, dspy.Image):
        return not str(media.url).startswith("data:")
    return isinstance(media, dspy.File) and bool(media.file_id)


class _Short(ShortRepr):
    """Writes a short `repr` in which marks are decoded as in the REPL."""

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        """Return a dict, or the value of a mark, as text."""
        if TYPE in x:
            return self.repr1(x.get("value"), level)
        if RECORD not in x or not isinstance(x.get("fields"), dict):
            return super().repr_dict(x, level)
        fields = (f"{name}={self.repr1(value, level - 1)}" for name, value in x["fields"].items())
        return f"{x[RECORD]}({', '.join(fields)})"


_SHORT = _Short(200)


def short(value: Any, max_chars: int) -> str:
    """Return a value as shortened text for the trajectory."""
    if type(value) is str and len(value) <= max_chars and value.isascii():  # the usual case
        return value
    if isinstance(value, Text | str):
        return sendable(clip(str(value), max_chars))
    return sendable(clip(repr(value) if isinstance(value, BaseModel) else _SHORT.repr(value), max_chars))
