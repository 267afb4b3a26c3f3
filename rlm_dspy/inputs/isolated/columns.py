"""Builds Arrow columns from Python values without changing them; a column of mixed values becomes text."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


def column_of(values: Sequence[Any]) -> Any:
    """Return the `pyarrow` array of values; if no type of Arrow fits all of them, the array of their texts."""
    import pyarrow as pa

    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return _texts_of(values)


def table_of(names: Sequence[str], columns: Sequence[Sequence[Any]]) -> Any:
    """Return the `pyarrow.Table` of columns of Python values."""
    import pyarrow as pa

    return pa.Table.from_arrays([column_of(values) for values in columns], names=list(names))


def table_of_frame(frame: Any) -> Any:
    """Return the `pyarrow.Table` of a DataFrame without its index."""
    import pyarrow as pa

    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        frame = frame.copy(deep=False)
    for position, kind in enumerate(frame.dtypes):
        if kind.kind == "O":
            values = frame.iloc[:, position]
            column = column_of(values.where(values.notna(), None).tolist())
            if pa.types.is_string(column.type):
                frame.isetitem(position, column.to_pylist())
    return pa.Table.from_pandas(frame, preserve_index=False)


def joined(parts: Sequence[Any]) -> Any:
    """Return the rows of several tables of the same columns as one table."""
    import pyarrow as pa

    columns = [_joined_column([part.column(at) for part in parts]) for at in range(parts[0].num_columns)]
    return pa.Table.from_arrays(columns, names=parts[0].column_names)


def _joined_column(parts: Sequence[Any]) -> Any:
    import pyarrow as pa

    kinds = {part.type for part in parts} - {pa.null()}
    if len(kinds) <= 1:
        kind = kinds.pop() if kinds else pa.null()
    else:
        kind = pa.float64() if kinds == {pa.int64(), pa.float64()} else None
    try:
        if kind is not None:
            return pa.chunked_array([chunk for part in parts for chunk in part.cast(kind).chunks], type=kind)
    except pa.ArrowInvalid:  # a float cannot hold this integer
        pass
    return pa.chunked_array([_texts_of(part.to_pylist()) for part in parts], type=pa.string())


def _texts_of(values: Sequence[Any]) -> Any:
    import pyarrow as pa

    return pa.array(map(_text_of, values), pa.string())


def _text_of(value: Any) -> str | None:
    """Return a text as it is, and other values as JSON."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.encode("utf-8", "replace").decode()
