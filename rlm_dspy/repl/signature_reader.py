"""Reads the signature of a run from a string or a class, and rejects one that no run could answer."""

from __future__ import annotations

import datetime as dt
import decimal
from types import SimpleNamespace
from typing import Any

import dspy

from rlm_dspy._dspy_compat import types_of_callers
from rlm_dspy.inputs import Files, HostInput, Table
from rlm_dspy.repl.type_names import bare

_TYPES = {
    **{kind.__name__: kind for kind in (dt.date, dt.time, dt.timedelta, decimal.Decimal)},
    **{kind.__name__: kind for kind in (Files, Table)},
}
"""Types that a string may name without an import, unless the caller has another one of that name."""
_FRAMES = SimpleNamespace(DataFrame=Table)
"""pydantic has no schema of a DataFrame; a field of type `Table` takes one."""
_INSTEAD: dict[str, Any] = {"datetime": dt.datetime, "DataFrame": Table, "pd": _FRAMES, "pandas": _FRAMES}
"""The types of names that DSPy cannot find in the caller's modules."""


def check_signature(signature: str | type[dspy.Signature]) -> type[dspy.Signature]:
    """Return the signature class for a string or a class.

    A string may name the types of its caller, and `date`, `datetime`, `time`, `timedelta`, `Decimal`, `Files`,
    `Table` and `pd.DataFrame`, which is read as `Table`.

    Raises:
        TypeError: If it is neither.
        ValueError: If it cannot be parsed, has no output, or an output that code cannot submit.
    """
    if not isinstance(signature, str) and not (
        isinstance(signature, type) and issubclass(signature, dspy.Signature)
    ):
        raise TypeError(
            f"Invalid signature {signature!r}: it must be a string like 'context, question -> answer: str' or a "
            "dspy.Signature class."
        )
    read = _parsed(signature) if isinstance(signature, str) else signature
    if not read.output_fields:
        raise ValueError(
            f"Invalid signature {read.signature!r}: it has no output field. "
            "Write e.g. 'context, question -> answer: str'."
        )
    for name, field in read.output_fields.items():
        kind = bare(field.annotation)
        if isinstance(kind, type) and (issubclass(kind, HostInput) or kind.__module__.startswith("pandas")):
            raise ValueError(
                f"Invalid signature {read.signature!r}: code cannot submit {name!r}, a {kind.__name__}. Take its "
                f"rows, '-> {name}: list[dict]', or let code write a file below output/."
            )
    return read


def _parsed(signature: str) -> type[dspy.Signature]:
    read: type[dspy.Signature]
    try:
        read = dspy.Signature(signature)
    except Exception as error:  # noqa: BLE001 (DSPy imports what annotations name, which may raise anything)
        try:
            read = dspy.Signature(signature, custom_types={**_TYPES, **types_of_callers(signature), **_INSTEAD})
        except Exception:  # noqa: BLE001 (as above)
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(
                f"Invalid signature {signature!r}: {' '.join(str(error).split()).rstrip('.')}. Write e.g. "
                "'context, question -> names: list[str], count: int', with Python identifiers as names; or, "
                "for a type of your own inside brackets, a dspy.Signature class."
            ) from error
    return read
