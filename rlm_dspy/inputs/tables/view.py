"""Defines the table that code finds in the REPL.

It imports pandas, DuckDB and SQLite when they are needed. The host uses it, and its source is run in REPLs too
(`repl/bootstrap.py`).
"""

from typing import Any

_EXACT_IN_FLOAT = 1 << 53


class TableView:
    """A read-only table; `df()`, `sql(query)` and `head(n)` give pandas DataFrames.

    Args:
        arrow: The `pyarrow.Table`.
    """

    def __init__(self, arrow: Any) -> None:
        self.arrow = arrow
        self._frame: Any = None
        self._database: Any = None

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return list(self.arrow.column_names)

    @property
    def schema(self) -> dict[str, str]:
        """The Arrow type of each column, by name."""
        return {field.name: str(field.type) for field in self.arrow.schema}

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self.arrow.num_rows)

    def __getitem__(self, name: str) -> Any:
        """Return a column as a pandas Series."""
        return self.df()[name]

    def df(self) -> Any:
        """Return the table as a pandas DataFrame; the same one each time.

        A column of integers with empty cells is float64, as pandas has it; Int64 if floats would change them.
        """
        if self._frame is None:
            self._frame = _frame_of(self.arrow)
        return self._frame

    def head(self, n: int = 5) -> Any:
        """Return the first rows as a pandas DataFrame."""
        return _frame_of(self.arrow.slice(0, n))

    def sql(self, query: str) -> Any:
        """Return the result of a query about the table `data` as a pandas DataFrame.

        The dialect is that of DuckDB where it can be imported, else that of SQLite.
        """
        try:
            import duckdb
        except ImportError:
            return self._by_sqlite(query)
        connection = duckdb.connect()
        connection.register("data", self.arrow)
        return connection.sql(query).df()

    def _by_sqlite(self, query: str) -> Any:
        import sqlite3

        import pandas as pd

        if self._database is None:
            self._database = sqlite3.connect(":memory:", check_same_thread=False)
            self.df().to_sql("data", self._database, index=False)
        cursor = self._database.execute(query)
        names = [about[0] for about in cursor.description or ()]
        rows = cursor.fetchall()
        frame = pd.DataFrame.from_records(rows, columns=names, coerce_float=True)
        for position, kind in enumerate(frame.dtypes):
            if kind == "float64" and _need_integers(values := [row[position] for row in rows]):
                frame.isetitem(position, pd.array(values, dtype="Int64"))
        return frame

    def __repr__(self) -> str:
        return f"Table({len(self):,} rows, columns {self.columns})"


def _frame_of(arrow: Any) -> Any:
    """Return the DataFrame of an Arrow table, with every integer as it is."""
    import pandas as pd
    import pyarrow as pa

    exact = {pa.int64(): pd.Int64Dtype(), pa.uint64(): pd.UInt64Dtype()}
    frame = arrow.to_pandas()
    for position, (name, column) in enumerate(zip(arrow.column_names, arrow.columns, strict=True)):
        if column.type in exact and column.null_count and _is_inexact_in_float(column):
            values = column.to_pandas(types_mapper=exact.get).array
            if len(frame.columns) == len(arrow.columns):
                frame.isetitem(position, values)
            elif name in frame.columns:  # others became the index
                frame[name] = values
    return frame


def _is_inexact_in_float(column: Any) -> bool:
    import pyarrow.compute as pc

    ends = pc.min_max(column).as_py()
    return any(abs(end or 0) > _EXACT_IN_FLOAT for end in ends.values())


def _need_integers(values: "list[Any]") -> bool:
    """Return whether all values are integers or None, and a float would change one of them."""
    whole = all(value is None or isinstance(value, int) for value in values)
    return whole and any(abs(value or 0) > _EXACT_IN_FLOAT for value in values)
