"""Reads a table from a file and writes it to standard output in Arrow's format: a job of `run_isolated`.

The parsers are written in C and C++; a damaged file may crash them or exhaust memory.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from .columns import joined, table_of
from .csv_file import read_csv
from .job import Bounds, Refused, Settings

if TYPE_CHECKING:
    from collections.abc import Callable

_ROWS_AT_ONCE = 100_000


class TableSettings(Settings):
    """The settings of the job."""

    kind: str
    file: str
    table: str | None
    columns: list[str] | None
    style: dict[str, str]
    """How a CSV is written: `sep`, `encoding`, `decimal`, as `pandas.read_csv` takes them."""
    most_bytes: int
    most_rows: int


def _of_csv(settings: TableSettings) -> Any:
    try:
        return read_csv(settings["file"], settings["style"], settings["columns"])
    except UnicodeDecodeError as error:
        raise Refused("encoding", str(error)) from error


def _of_jsonl(settings: TableSettings) -> Any:
    with open(settings["file"], encoding="utf-8-sig") as file:  # noqa: PTH123
        rows = [_named(json.loads(line)) for line in file if line.strip()]
    # Not `pd.read_json`: it reads "007" as a number, and rounds long numbers.
    names = list(dict.fromkeys(name for row in rows for name in row))
    chosen = settings["columns"] or names
    if unknown := [name for name in chosen if name not in names]:
        raise Refused("failed", f"it has no column {unknown[0]!r}")
    return table_of(chosen, [[row.get(name) for row in rows] for name in chosen])


def _named(row: Any) -> dict[str, Any]:
    """Return a line of JSON Lines as a row; the fields of a line that is not an object are numbered."""
    if isinstance(row, dict):
        return row
    return {str(number): value for number, value in enumerate(row if isinstance(row, list) else [row])}


def _of_parquet(settings: TableSettings) -> Any:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(settings["file"])
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    columns = settings["columns"]
    size = 0
    for group in groups:
        parts = [group.column(number) for number in range(group.num_columns)]
        size += sum(
            p.total_uncompressed_size for p in parts if not columns or p.path_in_schema.split(".")[0] in columns
        )
    if size > settings["most_bytes"] or file.metadata.num_rows > settings["most_rows"]:
        raise Refused("large", f"{file.metadata.num_rows:,} rows")
    return file.read(columns=columns)


def _of_arrow(settings: TableSettings) -> Any:
    import pyarrow as pa
    from pyarrow import feather, ipc

    with pa.memory_map(settings["file"]) as file:
        try:
            table = ipc.open_file(file).read_all()
        except pa.ArrowInvalid:
            file.seek(0)
            try:
                table = ipc.open_stream(file).read_all()
            except pa.ArrowInvalid:
                return feather.read_table(settings["file"], columns=settings["columns"])
        table.validate(full=True)
        return _chosen(table, settings)


def _of_sqlite(settings: TableSettings) -> Any:
    import sqlite3

    path = settings["file"]
    # SQLite must not write files beside the database, unless its log holds rows, which it would not read then.
    fixed = "" if any(os.path.exists(f"{path}-{log}") for log in ("wal", "journal")) else "&immutable=1"  # noqa: PTH110
    connection = sqlite3.connect(f"file:{quote(path)}?mode=ro{fixed}", uri=True)
    found = connection.execute("select name from sqlite_master where type in ('table', 'view')").fetchall()
    query = _query([name for (name,) in found], settings)
    cursor = connection.execute(query)
    names = [about[0] for about in cursor.description]
    parts: list[Any] = []
    size = 0
    while (rows := cursor.fetchmany(_ROWS_AT_ONCE)) or not parts:
        parts.append(table_of(names, list(zip(*rows, strict=True)) if rows else [()] * len(names)))
        size += parts[-1].nbytes
        if size > settings["most_bytes"]:
            raise Refused("large")
    return joined(parts)


def _of_duckdb(settings: TableSettings) -> Any:
    import duckdb

    config: dict[str, Any] = {"enable_external_access": "false", "autoload_known_extensions": "false"}
    connection = duckdb.connect(settings["file"], read_only=True, config=config)
    names = [name for (name,) in connection.execute("select table_name from information_schema.tables").fetchall()]
    return connection.sql(f"{_query(names, settings)} limit {settings['most_rows'] + 1}").to_arrow_table()


def _query(names: list[str], settings: TableSettings) -> str:
    table = settings["table"] or (names[0] if len(names) == 1 else None)
    if table not in names:
        raise Refused("table", ", ".join(names[:50]))
    columns = ", ".join(map(_name, settings["columns"])) if settings["columns"] else "*"
    return f"select {columns} from {_name(table)}"  # noqa: S608 (quoted)


def _name(name: str) -> str:
    return '"{}"'.format(name.replace('"', '""'))


def _chosen(table: Any, settings: TableSettings) -> Any:
    return table.select(settings["columns"]) if settings["columns"] else table


READERS: dict[str, Callable[[TableSettings], Any]] = {
    "csv": _of_csv,
    "jsonl": _of_jsonl,
    "parquet": _of_parquet,
    "arrow": _of_arrow,
    "sqlite": _of_sqlite,
    "duckdb": _of_duckdb,
}


def _read(settings: TableSettings) -> Any:
    table = READERS[settings["kind"]](settings)
    if table.nbytes > settings["most_bytes"] or table.num_rows > settings["most_rows"]:
        raise Refused("large", f"{table.num_rows:,} rows")
    return table


def main(settings: TableSettings, bounds: Bounds) -> dict[str, str]:  # noqa: ARG001 (its libraries open files)
    """Read the table and write it."""
    import pyarrow as pa

    table = _read(settings)
    with os.fdopen(os.dup(1), "wb") as file, pa.ipc.new_file(file, table.schema) as out:
        out.write_table(table)
    return {}
