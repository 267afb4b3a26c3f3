"""Defines `Table`, an input of rows and columns."""

from __future__ import annotations

import hashlib
import os
import subprocess
from typing import TYPE_CHECKING, Any

from rlm_dspy.errors import UnreadableTable
from rlm_dspy.inputs.host_input import HostInput
from rlm_dspy.inputs.isolated.columns import table_of_frame
from rlm_dspy.inputs.isolated.process import run_isolated
from rlm_dspy.inputs.tables.view import TableView
from rlm_dspy.text import beginning, counted, expanded, one_line, real_path

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pydantic import JsonValue

KINDS = {
    **dict.fromkeys((".csv", ".tsv", ".tab"), "csv"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".feather", ".ipc"), "arrow"),
    **dict.fromkeys((".sqlite", ".sqlite3", ".db"), "sqlite"),
    **dict.fromkeys((".duckdb", ".ddb"), "duckdb"),
}
"""The format of a file, by its suffix."""
_MOST_BYTES, _MOST_ROWS = 1_000_000_000, 50_000_000
_CSV_STYLE = ("sep", "encoding", "decimal")
_SECONDS = 120
_MEMORY_BYTES = 8 << 30
_SHOWN_COLUMNS, _SHOWN_ROWS = 40, 3
_NAME_CHARS, _CELL_CHARS, _ROW_CHARS = 40, 40, 400
_PART = "Name the columns that are needed, Table.open(path, columns=[...]), or pass a DataFrame of a part"
_PROBLEMS = {
    "large": f"{{name}} is over {_MOST_BYTES // 1_000_000:,} MB or {_MOST_ROWS:,} rows ({{detail}}). {_PART}.",
    "memory": f"{{name}} needs more memory than a table may take. {_PART}.",
    "time": f"{{name}} could not be read within {_SECONDS} seconds. {_PART}.",
    "encoding": "{name} cannot be decoded ({detail}). Name its encoding: Table.open(path, encoding='latin-1').",
    "failed": "{name} cannot be read as {kind}: {detail}.",
    "crashed": "{name} is damaged: the parser of {kind} ended with {detail}.",
    "table": "Name the table of {name}: Table.open(path, table=...). It has: {detail}.",
    "missing": "{name} needs the package {detail}: pip install 'dspy-recursive-lm[tables]'.",
}


class Table(HostInput, TableView):
    """A table: in the REPL an object with `df()`, `sql(query)`, `head(n)`, `columns`, `schema` and `len`.

    Attributes:
        arrow: The `pyarrow.Table`.
        name: The name of the file; `table` if there is none.

    Raises:
        FileNotFoundError: From `Table.open`, if the file does not exist.
        UnreadableTable: From `Table.open`, if it is damaged, too large or of another kind.
    """

    usage = (
        "{0}.df() is a pandas DataFrame, {0}.sql('select ... from data') a DataFrame of its result, {0}.head(n), "
        "{0}.columns"
    )
    as_text = "data.head(20).to_csv()"

    def __init__(self, arrow: Any, name: str = "table") -> None:
        super().__init__(arrow)
        self.name = name

    @classmethod
    def open(
        cls,
        source: Any,
        *,
        table: str | None = None,
        columns: Sequence[str] | None = None,
        sep: str | None = None,
        encoding: str | None = None,
        decimal: str | None = None,
    ) -> Table:
        """Return the table of a file, a DataFrame or a `pyarrow.Table`.

        The index of a DataFrame becomes columns, unless it has no name and only numbers the rows.

        CSV, TSV, JSON Lines, Parquet, Arrow, Feather, SQLite and DuckDB files are known by their suffix and read
        in a process of their own, with bounds of time and memory: at most 1 GB and 50 million rows. The first row
        of a CSV has the names of its columns.

        Args:
            source: The path of a file, a `pandas.DataFrame` or a `pyarrow.Table`.
            table: The table of a database; needed if it has several.
            columns: The columns to take; default: all.
            sep: The delimiter of a CSV, one character; default: the one that is found.
            encoding: The encoding of a CSV, e.g. `"latin-1"`; default: UTF-8.
            decimal: The decimal mark of a CSV, e.g. `","`; default: a dot.

        Raises:
            FileNotFoundError: If there is no such file.
            TypeError: If `sep`, `encoding` or `decimal` is given for something else than a CSV.
            UnreadableTable: If it cannot be read; the message says what to do.
        """
        import pyarrow as pa

        style = {name: value for name, value in zip(_CSV_STYLE, (sep, encoding, decimal), strict=True) if value}
        if isinstance(source, str | os.PathLike):
            return _read(real_path(expanded(source)), table, columns, style)
        if style:
            raise TypeError(f"{', '.join(style)}: only for a CSV file, not for a {type(source).__name__}.")
        try:
            found = source if isinstance(source, pa.Table) else _of_frame(source)
            return cls(found.select(list(columns)) if columns else found)
        except (pa.ArrowException, AttributeError, TypeError, KeyError, ValueError) as error:
            raise UnreadableTable(
                f"A {type(source).__name__} cannot be a Table ({one_line(str(error), 200)}). Table.open takes a "
                "path, a pandas.DataFrame or a pyarrow.Table."
            ) from error

    @property
    def total(self) -> int:
        """The bytes of all values."""
        return int(self.arrow.nbytes)

    def digest(self) -> tuple[int, str]:
        """Return the bytes of all values, and the SHA-256 of the table in Arrow's format."""
        import pyarrow as pa

        hashed = _Hash()
        with pa.ipc.new_stream(pa.PythonFile(hashed, mode="w"), self.arrow.schema) as stream:
            stream.write_table(self.arrow)
        return self.total, hashed.sha256.hexdigest()

    def __repr__(self) -> str:
        return f"Table({self.name}, {counted(len(self), 'row')}, {counted(len(self.columns), 'column')})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Table, (self.arrow, self.name)

    def stand_in(self) -> dict[str, Any]:
        """Return the arguments of the table in the REPL."""
        return {"arrow": self.arrow}

    @property
    def about(self) -> str:
        """Rows, the type and nulls of each column, and three rows, in at most 5,000 characters."""
        columns = [
            (field.name, str(field.type), column.null_count)
            for field, column in zip(self.arrow.schema, self.arrow.columns, strict=True)
        ]
        return about_table(len(self), columns, self.arrow.slice(0, _SHOWN_ROWS).to_pylist())


def about_table(rows: int, columns: Sequence[tuple[str, str, int]], examples: Sequence[dict[str, Any]]) -> str:
    """Describe a table to a model.

    Args:
        rows: The number of rows.
        columns: Name, type and number of nulls of each column.
        examples: Some rows.
    """
    described = [
        f"{beginning(name, _NAME_CHARS)} {beginning(kind, _NAME_CHARS)}{f' ({nulls:,} null)' if nulls else ''}"
        for name, kind, nulls in columns[:_SHOWN_COLUMNS]
    ]
    more = f", {len(columns) - _SHOWN_COLUMNS:,} more columns" if len(columns) > _SHOWN_COLUMNS else ""
    shown = "; ".join(beginning(_row(example), _ROW_CHARS) for example in examples)
    size = f"{counted(rows, 'row')}, {counted(len(columns), 'column')}"
    return f"{size}: {', '.join(described)}{more}{f'; first rows: {shown}' if shown else ''}"


def _row(example: dict[str, Any]) -> str:
    cells = list(example.items())[:_SHOWN_COLUMNS]
    texts = (f"{beginning(str(name), _NAME_CHARS)}: {_cell(value)}" for name, value in cells)
    return f"{{{', '.join(texts)}}}"


def _cell(value: Any) -> str:
    return repr(value[:_CELL_CHARS]) if isinstance(value, str | bytes) else one_line(str(value), _CELL_CHARS)


class _Hash:
    """A file that keeps the SHA-256 of what is written."""

    closed = False

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Add bytes to the hash."""
        self.sha256.update(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def _of_frame(frame: Any) -> Any:
    """Return a `pyarrow.Table` of a DataFrame, with its index as columns unless it only numbers the rows."""
    is_named = any(name is not None for name in frame.index.names)
    if is_named or frame.index.inferred_type != "integer":
        frame = frame.reset_index()
    return table_of_frame(frame)


def _read(path: Path, table: str | None, columns: Sequence[str] | None, style: dict[str, str]) -> Table:
    import pyarrow as pa

    if not path.is_file():
        wrong = "is not a regular file" if path.exists() else "does not exist"
        raise FileNotFoundError(f"{path} {wrong}. Table.open takes a path, a DataFrame or a pyarrow.Table.")
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise UnreadableTable(f"{path.name} has none of the suffixes of a table: {', '.join(KINDS)}.")
    if style and kind != "csv":
        raise TypeError(f"{', '.join(style)}: only for a CSV file, not for {path.name}.")
    settings: dict[str, JsonValue] = {
        "kind": kind,
        "file": str(path),
        "table": table,
        "columns": list(columns) if columns else None,
        "style": {**style},
        "most_bytes": _MOST_BYTES,
        "most_rows": _MOST_ROWS,
    }
    bounds = {"seconds": _SECONDS, "file_bytes": 2 * _MOST_BYTES, "memory_bytes": _MEMORY_BYTES}
    report, output = run_isolated("table", settings, subprocess.DEVNULL, **bounds)
    problem, detail = report.problem, report.detail
    with output:
        if not problem:
            try:
                return Table(pa.ipc.open_file(output).read_all(), path.name)
            except pa.ArrowException as error:
                problem, detail = "failed", str(error)
    detail = one_line(detail, 300).rstrip(".")
    raise UnreadableTable(_PROBLEMS[problem].format(name=path.name, kind=kind, detail=detail))
