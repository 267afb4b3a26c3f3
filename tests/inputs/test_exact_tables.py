"""Values of a table are those of the file: integers, codes and words of its cells are not changed on the way."""

from __future__ import annotations

import sqlite3
import sys
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from rlm_dspy import Table
from rlm_dspy.errors import UnreadableTable
from rlm_dspy.interpreters import PythonInterpreter
from tests.crossing import run

if TYPE_CHECKING:
    from pathlib import Path

LONG = 1_234_567_890_123_456_789
"""An integer that no float holds."""


def long_ids(folder: Path, suffix: str) -> Path:
    """Write a table whose column of long integers has an empty cell, and another of short ones."""
    path = folder / f"ids{suffix}"
    if suffix == ".csv":
        path.write_text(f"id,n\n{LONG},1\n,\n", encoding="utf-8")
    elif suffix == ".jsonl":
        path.write_text(f'{{"id": {LONG}, "n": 1}}\n{{"n": null}}\n', encoding="utf-8")
    elif suffix == ".parquet":
        parquet.write_table(pa.table({"id": [LONG, None], "n": [1, None]}), path)
    else:
        with sqlite3.connect(path) as connection:
            connection.execute("create table ids (id integer, n integer)")
            connection.executemany("insert into ids values (?, ?)", [(LONG, 1), (None, None)])
        connection.close()
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".sqlite"])
def test_long_integers_beside_an_empty_cell_are_exact(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table.open(long_ids(tmp_path, suffix))
    assert table.schema == {"id": "int64", "n": "int64"}
    assert int(table.df()["id"].iloc[0]) == int(table.head()["id"].iloc[0]) == LONG
    assert int(table.sql("select id from data")["id"].iloc[0]) == LONG
    monkeypatch.setitem(sys.modules, "duckdb", None)
    answers = table.sql("select id, n, id + 1 as next from data")
    assert [int(answers[name].iloc[0]) for name in answers] == [LONG, 1, LONG + 1]


def test_long_integers_beside_an_empty_cell_work_as_a_column() -> None:
    """Short integers stay float64, as pandas has them."""
    frame = Table(pa.table({"id": [LONG, None, LONG], "n": [1, None, 3]})).df()
    assert (frame["n"].dtype, frame["id"].dtype) == ("float64", "Int64")
    assert (frame["id"].isna().sum(), frame["id"].max()) == (1, LONG)
    assert frame.groupby("id")["n"].sum().to_dict() == {LONG: 4}
    assert str(LONG) in str(frame)
    assert frame.merge(pd.DataFrame({"id": [LONG], "name": ["x"]}), on="id")["name"].tolist() == ["x", "x"]


def test_code_submits_long_integers_beside_an_empty_cell() -> None:
    code = "SUBMIT(answer=[data.df(), data.df()['id'].tolist()])"
    rows, values = run(PythonInterpreter, code, {"data": Table(pa.table({"id": [LONG, None]}))}).answer
    assert (rows, values) == ([{"id": LONG}, {"id": None}], [LONG, None])


def test_an_index_that_a_parquet_file_names_leaves_integers_exact() -> None:
    frame = pd.DataFrame({"id": pd.array([LONG, None], dtype="Int64")}, index=pd.Index(["a", "b"], name="key"))
    arrow = pa.Table.from_pandas(frame)
    plain = arrow.replace_schema_metadata(
        {b"pandas": arrow.schema.metadata[b"pandas"].replace(b"Int64", b"int64")}
    )
    assert int(Table(plain).df().loc["a", "id"]) == LONG


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ("zip,n\n00123,0.5\n,2\n4567,-0.25\n", {"zip": ["00123", None, "4567"], "n": [0.5, 2.0, -0.25]}),
        ("a,b\n00,NA,\n1,02,\n", {"a": ["00", "1"], "b": ["NA", "02"]}),
        ("land\nNA\nNone\nnull\n", {"land": ["NA", "None", "null"]}),
        (
            f"x,y,b,word\nNA,N/A,NA,None\n-1.5e3,2,True,007\n,{LONG},,\n",
            {
                "x": [None, -1500.0, None],
                "y": [None, 2, LONG],
                "b": [None, True, None],
                "word": ["None", "007", None],
            },
        ),
        (
            "phone;mobile;change;n\n+4917012345;+49 170;+5;1e5\n+4917012346;5; -3;inf\n",
            {
                "phone": ["+4917012345", "+4917012346"],
                "mobile": ["+49 170", "5"],
                "change": [5, -3],
                "n": [100_000.0, float("inf")],
            },
        ),
        ("long,n\n18446744073709551616,1\n,2\n", {"long": ["18446744073709551616", None], "n": [1, 2]}),
    ],
)
def test_cells_of_a_csv_are_numbers_only_if_that_changes_none(
    tmp_path: Path, content: str, columns: dict[str, list[Any]]
) -> None:
    (tmp_path / "a.csv").write_text(content, encoding="utf-8")
    assert Table.open(tmp_path / "a.csv").arrow.to_pydict() == columns


def test_chosen_columns_of_a_csv_keep_their_codes(tmp_path: Path) -> None:
    """Also if rows end with a delimiter."""
    (tmp_path / "a.csv").write_text("y,x,z\n1,00,NA,\n2,5,2,\n", encoding="utf-8")
    columns = Table.open(tmp_path / "a.csv", columns=["x", "z"]).arrow.to_pydict()
    assert columns == {"x": ["00", "5"], "z": [None, 2]}


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        (
            '{"a": 1, "b": {"c": 1}, "d": 1180591620717411303424}\n{"a": "x", "b": {"c": "x"}, "d": 1}\n',
            {"a": ["1", "x"], "b": ['{"c": 1}', '{"c": "x"}'], "d": ["1180591620717411303424", "1"]},
        ),
        (f'{{"a": {LONG}}}\n{{"a": 2.5, "b": "\\ud800"}}\n', {"a": [str(LONG), "2.5"], "b": [None, "?"]}),
        ('[1, "x"]\n[2, 3]\n', {"0": [1, 2], "1": ["x", "3"]}),
    ],
)
def test_a_column_of_mixed_values_in_json_lines_is_text(
    tmp_path: Path, content: str, columns: dict[str, list[Any]]
) -> None:
    (tmp_path / "a.jsonl").write_text(content, encoding="utf-8")
    assert Table.open(tmp_path / "a.jsonl").arrow.to_pydict() == columns


def test_a_column_that_json_lines_do_not_have_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n', encoding="utf-8")
    with pytest.raises(UnreadableTable, match="it has no column 'b'"):
        Table.open(tmp_path / "a.jsonl", columns=["b"])


def test_a_column_of_mixed_values_in_a_database_is_text(tmp_path: Path) -> None:
    """Also if rows are mixed that are far apart."""
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("create table t (a, b, c, d)")
        connection.execute("insert into t values ('mixed', 1, 1, ?)", (LONG,))
        connection.execute("insert into t values (3, 2, 2, ?)", (LONG,))
        connection.executemany("insert into t values (null, ?, null, null)", [(3,)] * 100_000)
        connection.execute("insert into t values (null, 'x', 2.5, 2.5)")
    connection.close()
    rows = Table.open(tmp_path / "a.db").arrow.to_pylist()
    assert rows[0] == {"a": "mixed", "b": "1", "c": 1.0, "d": str(LONG)}
    assert (rows[1]["a"], rows[-1]) == ("3", {"a": None, "b": "x", "c": 2.5, "d": "2.5"})


def test_a_column_of_mixed_values_in_a_frame_is_text() -> None:
    frame = pd.DataFrame({"a": [1, "x", None], "b": [2**100, 1, 2], "c": [1, 2, 3]})
    columns = Table.open(frame).arrow.to_pydict()
    assert columns == {"a": ["1", "x", None], "b": [str(2**100), "1", "2"], "c": [1, 2, 3]}
    assert frame["a"].tolist()[0] == 1
