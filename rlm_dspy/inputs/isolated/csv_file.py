"""Reads a CSV without changing its texts: only empty cells are missing, and a code such as `007` is text."""

from __future__ import annotations

import contextlib
import csv
import re
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

from .columns import table_of_frame
from .job import Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_REST = "\0rest"
"""The name of a column for fields after the last one."""
_CODED = r"^\s*([+-]?0\d|\+\d{7,15}\s*$)"
"""The beginning of a code that looks like a number: `00123`, `+4917012345`."""
_NUMBER = r"(?i)^\s*([+-]?(\d+[.,]?\d*|[.,]\d+)(e[+-]?\d+)?|[+-]?inf(inity)?)\s*$|^(true|false)$"
"""Texts that pandas may read as a number or a truth value."""
_MISSING = (
    *("", "NA", "N/A", "n/a", "<NA>", "#N/A", "#NA", "#N/A N/A", "NULL", "null", "None"),
    *("NaN", "nan", "-NaN", "-nan", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
)
"""Cells that are missing in a column of numbers; elsewhere, all but the empty one are texts."""
_SCANNED_CHARS = 1 << 24


def read_csv(path: str, style: Mapping[str, str], columns: Sequence[str] | None) -> Any:
    """Return the `pyarrow.Table` of a CSV.

    Args:
        path: The file.
        style: Its format: `sep`, `encoding`, `decimal`, as for `pandas.read_csv`.
        columns: The columns to take; None for all.
    """
    import pandas as pd

    style = {"encoding": "utf-8-sig", **style}
    if "sep" not in style:
        style["sep"] = _separator(path, style["encoding"])
    # Without `index_col=False`, pandas takes the first fields of rows longer than the header for an index.
    plain = {"low_memory": False, "index_col": False, "keep_default_na": False, "dtype_backend": "numpy_nullable"}
    read = partial(pd.read_csv, path, **plain, **style)
    table = table_of_frame(_frame(partial(read, na_values=[""]), columns))
    worded = [name for name in table.column_names if _is_text(table[name]) and _has_numbers_and_words(table[name])]
    doubtful = [name for name in table.column_names if not _is_text(table[name])]
    if doubtful and _has_codes(path, style):
        names = list(_frame(partial(read, nrows=0), None).columns)
        places = _with_codes(path, style, [names.index(name) for name in doubtful])
        doubtful = [names[place] for place in places]
    else:
        doubtful = []
    if worded or doubtful:
        missing = {name: _MISSING if name in worded else [""] for name in table.column_names}
        again = partial(read, na_values=missing, dtype=dict.fromkeys(doubtful, object))
        second = table_of_frame(_frame(again, columns))
        better = [name for name in worded if not _is_text(second[name])]
        better += [name for name in doubtful if _any_matches(second[name], _CODED)]
        for name in better:
            table = table.set_column(table.column_names.index(name), name, second[name])
    return _without_empty_texts(table).replace_schema_metadata(None)


def _separator(path: str, encoding: str) -> str:
    with open(path, encoding=encoding, newline="") as file:  # noqa: PTH123
        head = file.read(64_000)
    with contextlib.suppress(csv.Error):
        return csv.Sniffer().sniff(head, ",;\t|").delimiter
    return "\t" if path.lower().endswith((".tsv", ".tab")) else ","


def _frame(read: Callable[..., Any], columns: Sequence[str] | None) -> Any:
    """Return the DataFrame of all rows, which may end with a delimiter that the first row lacks."""
    import pandas as pd

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return read(usecols=columns)
    except pd.errors.ParserWarning:  # there are such rows; what follows the last name may be empty
        names = list(read(nrows=0).columns)
    frame = read(header=0, names=[*names, _REST])
    if frame.pop(_REST).replace("", None).notna().any():
        raise Refused("failed", f"it has rows with more fields than the {len(names)} names in its first row")
    return frame[list(columns)] if columns else frame


def _has_codes(path: str, style: Mapping[str, str]) -> bool:
    """Return whether the file may contain codes that look like numbers."""
    code = re.compile(rf"(?:\A|[\r\n\"{re.escape(style['sep'])}])\s*(?:[+-]?0\d|\+\d{{7}})")
    return any(code.search(piece) for piece in _pieces(path, style["encoding"]))


def _with_codes(path: str, style: Mapping[str, str], places: list[int]) -> list[int]:
    """Return the columns that may contain codes, or all if the lengths of rows differ. Uses little memory."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    kinds = {f"f{place}": pa.string() for place in places}
    found: set[int] = set()
    encoding = style["encoding"].replace("utf-8-sig", "utf8")
    try:
        with arrow_csv.open_csv(
            path,
            arrow_csv.ReadOptions(autogenerate_column_names=True, encoding=encoding, block_size=_SCANNED_CHARS),
            arrow_csv.ParseOptions(delimiter=style["sep"], newlines_in_values=True),
            arrow_csv.ConvertOptions(column_types=kinds, include_columns=list(kinds)),
        ) as batches:
            for batch in batches:
                found |= {
                    p for p, column in zip(places, batch.columns, strict=True) if _any_matches(column, _CODED)
                }
    except (pa.ArrowException, ValueError):
        return places
    return sorted(found)


def _pieces(path: str, encoding: str) -> Iterator[str]:
    """Yield a text in pieces that end with a line."""
    with open(path, encoding=encoding, newline="") as file:  # noqa: PTH123
        while piece := file.read(_SCANNED_CHARS):
            yield piece + file.readline()


def _is_text(column: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(column.type) or pa.types.is_large_string(column.type))


def _any_matches(column: Any, pattern: str) -> bool:
    import pyarrow.compute as pc

    return bool(pc.any(pc.match_substring_regex(column, pattern)).as_py())


def _has_numbers_and_words(column: Any) -> bool:
    """Return whether a column of texts would be one of numbers but for words such as `NA`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    is_word = pc.is_in(column, pa.array(_MISSING, column.type))
    if not pc.any(is_word).as_py():
        return False
    others = column.filter(pc.invert(is_word)).drop_null()
    if not len(others) or _any_matches(others, _CODED):
        return False
    return bool(pc.all(pc.match_substring_regex(others, _NUMBER)).as_py())


def _without_empty_texts(table: Any) -> Any:
    """Return the table with nulls for empty texts; pandas leaves some where numbers turned out to be texts."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for at, column in enumerate(table.columns):
        if _is_text(column) and pc.any(pc.equal(column, "")).as_py():
            full = pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column)
            table = table.set_column(at, table.column_names[at], full)
    return table
