"""Defines the table that code finds in the REPL.

It imports pandas, DuckDB and SQLite when they are needed. The host uses it, and its source is run in REPLs too
(`repl/bootstrap.py`).
"""

from typing import Any


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
        """Return the table as a pandas DataFrame; the same one each time."""
        if self._frame is None:
            self._frame = self.arrow.to_pandas()
        return self._frame

    def head(self, n: int = 5) -> Any:
        """Return the first rows as a pandas DataFrame."""
        return self.arrow.slice(0, n).to_pandas()

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
        return pd.read_sql_query(query, self._database)

    def __repr__(self) -> str:
        return f"Table({len(self):,} rows, columns {self.columns})"
