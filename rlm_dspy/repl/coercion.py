"""Converts the values of a SUBMIT to the types of the signature."""

from __future__ import annotations

import contextlib
import datetime as dt
import decimal
import enum
import inspect
import json
import re
import types
from fractions import Fraction
from itertools import repeat
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, cast, get_args, get_origin
from uuid import UUID

from pydantic import BeforeValidator, Discriminator, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from rlm_dspy._dspy_compat import annotation_allows_none, parse_value
from rlm_dspy.json_values import MAX_DEPTH, nested_too_deep
from rlm_dspy.repl.type_names import name_of
from rlm_dspy.text import beginning

if TYPE_CHECKING:
    from collections.abc import Callable

    import dspy
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails
    from typing_extensions import TypeForm

TOO_DEEP = (ValueError, RecursionError, MemoryError)
"""The errors that DSPy's parsers raise for thousands of open brackets, besides their own errors."""
_MOST_REPAIRED_CHARS = 4_000
"""A longer text must be valid JSON."""
_FORMS = {
    bool: "True",
    int: "1234",
    float: "12.5",
    decimal.Decimal: "'12.50'",
    dt.date: "'2025-03-14'",
    dt.datetime: "'2025-03-14T09:30:00'",
    dt.time: "'09:30:00'",
    dt.timedelta: "'PT90M'",
}
"""An example for each type whose other forms may have several meanings."""
_NUMBER = re.compile(r"-?\d+(?:\.\d*)?")
LEAST_TIMESTAMP = 1e8
"""Seconds since 1970; a smaller number is more likely a year or a date without hyphens."""
NO_DATE = "a number is not a date"
_GROUPED = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+")
"""An integer with commas between its thousands."""
_BULLET = re.compile(r"\s*(?:[-*\u2022]|\d+[.)])\s+(?=\S)")
_CONTAINERS = (list, set, frozenset, tuple, dict)
_TEXT_OF = (bool, int, float, complex, decimal.Decimal, Fraction, dt.date, dt.time, dt.timedelta, UUID, PurePath)
"""The types whose `str` is a value's usual text. That of other objects says what they are, not what they hold."""
_SHOWN_CHARS = 120
_SHOWN_REASONS = 5
_TOLD_OF_THE_WHOLE = ("enum", "value_error", "assertion_error")
_TOLD_PROBLEMS = 1_000
"""With more problems in one value, none is listed: pydantic lists all or none, 1 KB each."""


def read_answer(signature: type[dspy.Signature], submitted: Any) -> tuple[dict[str, Any], list[str]]:
    """Convert submitted values to the output fields of a signature.

    A field may be left out if it has a default or allows None. Strings are read leniently into other types
    (`"42"` as int, `"2025-03-14"` as date, a JSON list as list), and objects of the REPL's own classes by
    their fields.

    Args:
        signature: The user's `dspy.Signature` class.
        submitted: The values by field name; for a single output field also the bare value.

    Returns:
        The values by field name, and the problems: one sentence per field, empty if all fit.
    """
    fields = signature.output_fields
    if not isinstance(submitted, dict) or (len(fields) == 1 and not set(submitted) & set(fields)):
        submitted = {next(iter(fields)): submitted} if len(fields) == 1 else {}
    problems = [f"{name}: no such output field" for name in submitted if name not in fields]
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in submitted:
            if not isinstance(submitted[name], str) and nested_too_deep(submitted[name]):
                problems.append(f"{name}: nested more than {MAX_DEPTH} levels deep; submit a flatter value")
                continue
            try:
                values[name] = read_value(submitted[name], type_of(field))
            except ValueError as error:
                problems.append(f"{name}: {error}")
        elif not field.is_required():
            values[name] = field.get_default(call_default_factory=True)
        elif annotation_allows_none(field.annotation):
            values[name] = None
        else:
            problems.append(f"{name}: missing ({name_of(field.annotation)})")
    return values, problems


def type_of(field: FieldInfo) -> TypeForm[Any]:
    """Return the type of a field with its constraints: `Annotated[int, Ge(1)]`."""
    by = field.discriminator
    metadata = [*field.metadata, *([Discriminator(by) if isinstance(by, str) else by] if by else [])]
    return cast("TypeForm[Any]", Annotated[field.annotation, *metadata] if metadata else field.annotation)


def read_value(value: Any, annotation: TypeForm[Any]) -> Any:
    """Convert one value to a type, with the constraints and validators of an `Annotated` one.

    Raises:
        ValueError: If it does not fit; the message names the expected type and the value.
    """
    if inspect.isawaitable(value):
        raise ValueError(f"expected {name_of(annotation)}, got {_shown(value)}; write `await` before the call")
    if get_origin(annotation) is Annotated:
        with contextlib.suppress(ValueError):  # unchanged, for validators that run before the type
            return _checked(value, annotation)
        return _checked(read_value(value, get_args(annotation)[0]), annotation)
    if annotation is str:
        return _read_str(value)
    strict = with_strict_dates(annotation)
    checked = TypeAdapter(strict).validate_python
    attempts: list[Callable[[], Any]] = [
        lambda: checked(value),
        lambda: checked(value, by_alias=True, by_name=True),  # a `Record` has it too
        lambda: _parsed(value, strict),
    ]
    if isinstance(annotation, enum.EnumMeta):
        attempts.reverse()
    attempts.append(lambda: _member(value, annotation))
    attempts.append(lambda: checked(_as_plain(value)))
    attempts.append(lambda: checked(_fitted(_as_plain(value), annotation)))
    details = ""
    for attempt in attempts:
        try:
            return attempt()
        except (TypeError, PydanticSerializationError, *TOO_DEEP) as error:
            details = details or _details(error)
    form = next((form for kind, form in _FORMS.items() if any(kind is each for each in _choices(annotation))), "")
    example = f"; write it like {form}" if form else ""
    raise ValueError(f"expected {name_of(annotation)}, got {_shown(value)}{details}{example}")


def _choices(annotation: TypeForm[Any]) -> tuple[Any, ...]:
    """Return the types of a union, or the type itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def with_strict_dates(annotation: TypeForm[Any]) -> TypeForm[Any]:
    """Return a type whose dates and times cannot be bare numbers, which pydantic reads as seconds since 1970.

    The fields of models are unchanged, because models belong to the caller.
    """
    if annotation in (dt.date, dt.datetime, dt.time):
        return cast("TypeForm[Any]", Annotated[annotation, BeforeValidator(_no_year)])
    parts, origin = get_args(annotation), cast("Any", get_origin(annotation))
    if origin in (Annotated, Literal) or not any(map(_holds_dates, parts)):
        return annotation
    strict = tuple(map(with_strict_dates, parts))
    is_union = origin in (Union, types.UnionType)
    return cast("TypeForm[Any]", Union[strict] if is_union else origin[strict])  # noqa: UP007


def _holds_dates(annotation: Any) -> bool:
    return annotation in (dt.date, dt.datetime, dt.time) or any(map(_holds_dates, get_args(annotation)))


def _no_year(value: Any) -> Any:
    """Return a value for a date; `20240301` as `2024-03-01`.

    Raises:
        ValueError: If it is a number that is too small for a time since 1970, such as a year.
    """
    text = str(value).strip() if isinstance(value, int | float | str) else ""
    if not _NUMBER.fullmatch(text) or abs(float(text)) >= LEAST_TIMESTAMP:
        return value
    if len(text) == len("20240301"):
        return f"{text[:4]}-{text[4:6]}-{text[6:]}"
    raise ValueError(NO_DATE)


def _member(value: Any, annotation: TypeForm[Any]) -> Any:
    """Return the only choice that a text stands for, ignoring case: an enum's member, or a literal.

    Raises:
        ValueError: If it stands for none, or for several.
    """
    wanted = str(value).strip().lower() if isinstance(value, str) or type(value) is int else None
    choices: list[Any] = []
    for kind in _choices(annotation):
        if isinstance(kind, enum.EnumMeta):
            choices += cast("type[enum.Enum]", kind)
        elif get_origin(kind) is Literal:
            choices += get_args(kind)
    named = [choice for choice in choices if wanted in _texts_of(choice)]
    if len(named) != 1:
        raise ValueError("no such choice")
    return named[0]


def _texts_of(choice: Any) -> set[str]:
    """Return the texts in lower case that stand for a member of an enum, or for a literal."""
    texts = [choice.decode("utf-8", "replace") if isinstance(choice, bytes) else choice]
    if isinstance(choice, enum.Enum):
        texts = [choice.name, f"{type(choice).__name__}.{choice.name}", choice.value]
    return {str(text).strip().lower() for text in texts}


def _parsed(value: Any, annotation: TypeForm[Any]) -> Any:
    """Parse a value as DSPy does, which repairs broken JSON in quadratic time."""
    if isinstance(value, str) and len(value) > _MOST_REPAIRED_CHARS:
        return TypeAdapter(annotation).validate_json(value)
    return parse_value(value, annotation)


def _fitted(value: Any, annotation: TypeForm[Any]) -> Any:
    """Return JSON-like data with each part read as leniently as a whole value: `["RED"]` as a list of an enum."""
    kinds = [kind for kind in _choices(annotation) if kind is not type(None)]
    kind, holds = kinds[0], get_origin(kinds[0]) in _CONTAINERS or hasattr(kinds[0], "model_fields")
    if len(kinds) == 1 and get_origin(kind) is Annotated:
        return _fitted(value, get_args(kind)[0])
    if len(kinds) == 1 and holds:
        if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
            value = json.loads(value)
        elif isinstance(value, str) and get_origin(kind) is not dict and all(map(_BULLET.match, _lines(value))):
            value = [_BULLET.sub("", line).strip() for line in _lines(value)]
        return _fitted_parts(value, kind)
    if isinstance(value, str) and int in kinds and _GROUPED.fullmatch(value):
        return value.replace(",", "")
    with contextlib.suppress(ValueError):
        return _member(value, annotation)
    return value


def _lines(text: str) -> list[str]:
    """Return the lines of a text that are not empty."""
    return [line for line in text.splitlines() if line.strip()]


def _fitted_parts(value: Any, kind: Any) -> Any:
    """Return the items of a list or dict, or the fields of a model, each as `_fitted` reads it."""
    parts = get_args(kind) or (Any,)
    if isinstance(value, dict):
        fields = getattr(kind, "model_fields", {})
        types = {alias: field.annotation for name, field in fields.items() for alias in (name, field.alias)}
        return {
            key if fields else _fitted(key, parts[0]): _fitted(item, types.get(key, parts[-1]))
            for key, item in value.items()
        }
    if not isinstance(value, list):
        return value
    one_by_one = get_origin(kind) is tuple and ... not in parts and len(parts) == len(value)
    return [
        _fitted(item, part) for item, part in zip(value, parts if one_by_one else repeat(parts[0]), strict=False)
    ]


def _checked(value: Any, annotation: TypeForm[Any]) -> Any:
    try:
        return TypeAdapter(annotation).validate_python(value, by_alias=True, by_name=True)
    except ValidationError as error:
        reasons = "; ".join(_reasons(error))
    except Exception as error:  # noqa: BLE001 (the caller's validator: any error refuses the value)
        reasons = f"{type(error).__name__}: {error}"
    raise ValueError(f"{reasons}; got {_shown(value)}")


def _read_str(value: Any) -> str:
    """Return a str, or what has a usual text as that text; refuse all other objects."""
    plain = value.value if isinstance(value, enum.Enum) else value
    plain = plain.tolist() if hasattr(plain, "tolist") else plain  # a number of numpy
    if isinstance(plain, (str, *_TEXT_OF)):
        return str(plain)
    raise ValueError(f"expected str, got {_shown(value)}")


def _as_plain(value: Any) -> Any:
    """Return the value as JSON-like data: models, dataclasses and arrays of the REPL's own classes by fields."""
    if hasattr(value, "tolist"):  # numpy and pandas, without importing them
        return value.tolist()
    if hasattr(value, "to_dict"):
        return value.to_dict(orient="records") if hasattr(value, "columns") else value.to_dict()
    return to_jsonable_python(_by_names(value), fallback=_attributes)


def _attributes(value: Any) -> dict[str, Any]:
    """Return the fields of an object of the REPL's own classes.

    Raises:
        TypeError: If it is a function or an error, which have none.
    """
    if callable(value) or isinstance(value, BaseException):
        raise TypeError("no data")
    fields: dict[str, Any] = vars(value)
    return fields


def _by_names(value: Any) -> Any:
    """Replace namedtuples in lists and dicts by dicts."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: _by_names(item) for key, item in value.items()}
    return [_by_names(item) for item in value] if isinstance(value, list) else value


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  # an object of the REPL's own classes
        text = "(no repr)"
    return f"{type(value).__name__} {beginning(text, _SHOWN_CHARS)}"


def _details(error: Exception) -> str:
    """Return pydantic's messages for the parts, the members of an enum, and what a validator of the whole says."""
    if not isinstance(error, ValidationError) or error.error_count() > _TOLD_PROBLEMS:
        return ""
    parts = _reasons(error, [part for part in error.errors() if part["loc"] or part["type"] in _TOLD_OF_THE_WHOLE])
    return f" ({'; '.join(parts)})" if parts else ""


def _reasons(error: ValidationError, parts: list[ErrorDetails] | None = None) -> list[str]:
    """Return pydantic's messages for the first invalid parts of a value."""
    if error.error_count() > _TOLD_PROBLEMS:
        return [f"{error.error_count():,} values are invalid"]
    return [
        f"{'.'.join(map(str, part['loc']))}: {part['msg']}" if part["loc"] else part["msg"]
        for part in (error.errors() if parts is None else parts)[:_SHOWN_REASONS]
    ]
