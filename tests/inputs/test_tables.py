"""A table as an input: what is read, and how code and a model see it."""

from __future__ import annotations

import collections
import json
import pickle
import random
import sqlite3
from typing import TYPE_CHECKING, Any

import dspy
import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import feather
from pydantic import TypeAdapter, ValidationError

from rlm_dspy import RLM, Table
from rlm_dspy.cache.sub_call_cache import digest
from rlm_dspy.errors import UnreadableTable
from rlm_dspy.inputs import describe, opened
from rlm_dspy.inputs.tables import KINDS
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.repl.value_codec import received
from rlm_dspy.report.record import digest_of, recorded
from rlm_dspy.testing import ScriptedLM
from tests.crossing import run
from tests.playing import block

if TYPE_CHECKING:
    from pathlib import Path

FRAME = pd.DataFrame(
    {
        "city": ["Oslo", "Bern", "Lima", "Oslo"],
        "amount": [1.5, None, 3.0, 4.0],
        "year": [2024, 2025, 2025, 2026],
    }
)
OURS = pytest.mark.parametrize("factory", [PythonInterpreter, LocalPythonInterpreter])


def written(folder: Path, suffix: str, frame: pd.DataFrame = FRAME) -> Path:
    """Write a table to a file of this kind."""
    path = folder / f"sales{suffix}"
    kind = KINDS[suffix]
    if kind == "csv":
        frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    elif kind == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif kind == "parquet":
        frame.to_parquet(path)
    elif kind == "arrow":
        feather.write_feather(frame, path)
    elif kind == "sqlite":
        with sqlite3.connect(path) as connection:
            frame.to_sql("sales", connection, index=False)
        connection.close()
    else:
        with duckdb.connect(path) as database:
            database.register("frame", frame)
            database.execute("create table sales as select * from frame")
    return path


FILES = [".csv", ".tsv", ".jsonl", ".parquet", ".feather", ".sqlite", ".duckdb"]


@pytest.mark.parametrize("suffix", FILES)
def test_a_file_is_read_as_its_suffix_says(tmp_path: Path, suffix: str) -> None:
    """In a process of its own; the same rows come out of each."""
    table = Table.open(written(tmp_path, suffix))
    assert (len(table), table.columns) == (4, ["city", "amount", "year"])
    assert table.df()["amount"].sum() == 8.5
    assert table.schema["year"] == "int64"


def test_a_delimiter_is_found_and_columns_are_chosen(tmp_path: Path) -> None:
    """As spreadsheets of many countries write it."""
    path = tmp_path / "a.csv"
    path.write_text("\ufeffcity;amount\nOslo;1,5\nBern;2,5\n", encoding="utf-8")
    assert Table.open(path, columns=["city"]).df().to_dict("list") == {"city": ["Oslo", "Bern"]}


def test_the_style_of_a_csv_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("city#amount\nMünchen#1,5\nZürich#2,5\n".encode("latin-1"))
    table = Table.open(path, sep="#", encoding="latin-1", decimal=",")
    assert table.df().to_dict("list") == {"city": ["München", "Zürich"], "amount": [1.5, 2.5]}
    with pytest.raises(UnreadableTable, match=r"cannot be decoded \(.*\). Name its encoding: Table"):
        Table.open(path)
    with pytest.raises(UnreadableTable, match="unknown encoding: latin-99"):
        Table.open(path, encoding="latin-99")
    with pytest.raises(TypeError, match=r"decimal: only for a CSV file, not for a\.parquet"):
        Table.open(path.rename(tmp_path / "a.parquet"), decimal=",")
    with pytest.raises(TypeError, match="sep, encoding: only for a CSV file, not for a DataFrame"):
        Table.open(FRAME, sep=";", encoding="latin-1")


@pytest.mark.parametrize("source", [FRAME, pa.Table.from_pandas(FRAME)], ids=["pandas", "arrow"])
def test_a_frame_is_a_table(source: Any) -> None:
    """And an Arrow table."""
    assert Table.open(source, columns=["year"]).df()["year"].tolist() == [2024, 2025, 2025, 2026]


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.csv", "city,n\nTartu,5,\nTallinn,7,\n", [{"city": "Tartu", "n": 5}, {"city": "Tallinn", "n": 7}]),
        ("b.csv", "city,n\nTartu\nTallinn,7\n", [{"city": "Tartu", "n": None}, {"city": "Tallinn", "n": 7}]),
        ("c.jsonl", '{"id": "007", "created_at": 5}\n\n{"id": "10", "created_at": 1700000000}\n',
         [{"id": "007", "created_at": 5}, {"id": "10", "created_at": 1_700_000_000}]),
        ("d.jsonl", '{"n": 1234567890123456789}\n{"n": 1234567890123456788}\n',
         [{"n": 1_234_567_890_123_456_789}, {"n": 1_234_567_890_123_456_788}]),
    ],
)  # fmt: skip
def test_values_are_those_of_the_file_under_the_names_of_its_columns(
    tmp_path: Path, name: str, content: str, rows: list[dict[str, Any]]
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert Table.open(tmp_path / name).arrow.to_pylist() == rows


def test_rows_with_more_fields_than_names_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("city,n\nTartu,5,x\nTallinn,7,y\n", encoding="utf-8")
    with pytest.raises(UnreadableTable, match="more fields than the 2 names"):
        Table.open(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("index", "columns"),
    [
        (pd.Index(["a", "b"], name="when"), ["when", "n"]),
        (pd.Index(["a", "b"]), ["index", "n"]),
        (pd.RangeIndex(2), ["n"]),
        (pd.Index([4, 9]), ["n"]),
        (pd.MultiIndex.from_tuples([(1, 2), (3, 4)], names=["x", "y"]), ["x", "y", "n"]),
    ],
)
def test_an_index_becomes_columns_unless_it_only_numbers_the_rows(index: Any, columns: list[str]) -> None:
    assert Table.open(pd.DataFrame({"n": [1, 2]}, index=index)).arrow.column_names == columns


def test_rows_that_a_database_still_has_in_its_log_are_read(tmp_path: Path) -> None:
    """Another program has it open; beside a database that nobody has open nothing is written."""
    path = written(tmp_path, ".sqlite")
    with sqlite3.connect(path) as connection:
        connection.execute("pragma journal_mode=wal")
        connection.execute("insert into sales values ('Rome', 9.0, 2026)")
        connection.commit()
        assert len(Table.open(path)) == len(FRAME) + 1
    connection.close()
    assert len(Table.open(path)) == len(FRAME) + 1
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_a_database_of_several_tables_wants_a_name(tmp_path: Path) -> None:
    """The error lists them."""
    path = written(tmp_path, ".sqlite")
    with sqlite3.connect(path) as connection:
        connection.execute('create table "odd ""name" (a)')
    connection.close()
    with pytest.raises(UnreadableTable, match=r'table=\.\.\.\)\. It has: sales, odd "name'):
        Table.open(path)
    assert Table.open(path, table="sales", columns=["city"]).columns == ["city"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"a,b\n1,2\n1,2,3,4\n", "Expected 2 fields in line 3, saw 4"),
        ("a.csv", b"", "cannot be read as csv"),
        ("a.csv", b"a\n\xff\n", "utf-8"),
        ("a.parquet", b"PAR1 and no more", "cannot be read as parquet"),
        ("a.feather", b"ARROW1", "cannot be read as arrow"),
        ("a.sqlite", b"SQLite format 3\0 and no more", "cannot be read as sqlite"),
        ("a.duckdb", b"none", "cannot be read as duckdb"),
        ("a.jsonl", b'{"a": 1}\n{"a"', "cannot be read as jsonl"),
        ("a.txt", b"a", "none of the suffixes of a table"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    """By name and reason."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableTable, match=says):
        Table.open(tmp_path / name)


def test_no_file_and_no_table_are_told_apart(tmp_path: Path) -> None:
    """With what is taken."""
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Table.open(tmp_path / "a.csv")
    with pytest.raises(UnreadableTable, match=r"A int cannot be a Table .* a pandas\.DataFrame"):
        Table.open(3)


def test_a_table_that_is_too_large_is_refused(tmp_path: Path) -> None:
    """Before it is read, if the file says how many rows it has."""
    path = tmp_path / "a.parquet"
    pa.parquet.write_table(pa.table({"a": pa.array(np.zeros(60_000_000, dtype="int8"))}), path)
    with pytest.raises(UnreadableTable, match=r"50,000,000 rows \(60,000,000 rows\)\. Name the columns"):
        Table.open(path)


CODE = """
said = [len(data), data.columns, data.schema["year"], data.head(1).to_dict("records")]
said += [data.df()["amount"].sum(), data["year"].max()]
said += [data.sql("select city, sum(amount) as total from data group by city order by city")]
SUBMIT(answer=said)
"""


@OURS
def test_code_uses_a_table(factory: Any, tmp_path: Path) -> None:
    """In SQL and in pandas; values of numpy come back as Python's."""
    said = run(factory, CODE, {"data": Table.open(written(tmp_path, ".parquet"))}).answer
    assert said[:2] == [4, ["city", "amount", "year"]]
    assert said[2:6] == ["int64", [{"city": "Oslo", "amount": 1.5, "year": 2024}], 8.5, 2026]
    rows = said[6] if isinstance(said[6], list) else said[6].to_dict("records")
    assert [row["city"] for row in rows] == ["Bern", "Lima", "Oslo"]
    assert rows[2]["total"] == 5.5


@pytest.mark.parametrize(
    "factory",
    [
        LocalPythonInterpreter,
        lambda: PythonInterpreter(packages=["pandas", "pyarrow", "duckdb"]),
    ],
)
def test_code_may_ask_duckdb(factory: Any) -> None:
    """Where it can be imported; else SQLite answers."""
    code = "SUBMIT(answer=[*data.sql('select list(city order by city) as all_of_them from data').all_of_them[0]])"
    data = {"data": Table.open(FRAME)}
    assert run(factory, code, data).answer == ["Bern", "Lima", "Oslo", "Oslo"]


@OURS
def test_a_child_is_handed_the_table(factory: Any) -> None:
    """By `rlm_query`."""

    def act(messages: Any) -> str:
        if "Add them up" in messages[-1]["content"] and "whose" not in messages[-1]["content"]:
            return block("SUBMIT(response=str(context.df()['amount'].sum()))")
        return block("# whose\nSUBMIT(answer=rlm_query('Add them up', data))")

    with dspy.context(lm=ScriptedLM(act=act)):
        rlm = RLM("data -> answer", interpreter_factory=factory, max_iters=2)
        assert rlm(data=Table.open(FRAME)).answer == "8.5"


class Ask(dspy.Signature):
    """Answer from the table."""

    data: Table = dspy.InputField()
    answer: float = dspy.OutputField()


def test_a_field_may_be_typed_and_a_path_is_opened(tmp_path: Path) -> None:
    """The model is told schema, nulls and rows."""
    lm = ScriptedLM([block("SUBMIT(answer=data.df().amount.sum())")])
    with dspy.context(lm=lm):
        record, _ = recorded(RLM(Ask), {"data": written(tmp_path, ".csv")})
    assert record.outputs == {"answer": 8.5}
    assert record.inputs == {"data": "Table(sales.csv, 4 rows, 3 columns)"}
    told = lm.history[0]["messages"][-1]["content"]
    assert "data: Table, 4 rows, 3 columns: city" in told
    assert "amount double (1 null), year int64; first rows: {city: 'Oslo', amount: 1.5, year: 2024}" in told


def test_a_frame_given_as_it_is_is_described_by_its_columns() -> None:
    """And an Arrow table."""
    line = str(describe("data", FRAME))
    assert line.startswith("data: DataFrame, 4 rows, 3 columns: city ")
    assert "amount float64 (1 null), year int64; first rows: {city: 'Oslo'" in line
    assert str(describe("data", pa.Table.from_pandas(FRAME))).startswith("data: Table, 4 rows, 3 columns: city ")


def test_a_description_is_bounded() -> None:
    """Whatever the columns and cells."""
    frame = pd.DataFrame({f"{'c' * 100}{number}": ["x" * 10_000] for number in range(300)})
    for value in (frame, Table.open(frame)):
        line = str(describe("data", value))
        assert "260 more columns" in line
        assert len(line) < 5_000


def test_a_path_from_a_model_opens_nothing(tmp_path: Path) -> None:
    """A field of this type takes a `Table` alone."""
    path = str(written(tmp_path, ".csv"))
    with pytest.raises(ValidationError):
        TypeAdapter(Table).validate_python(path)
    with pytest.raises(ValueError, match="expected Table"):
        received(path, Table)
    with pytest.raises(ValueError, match=r"data\.head\(20\)"):
        received(Table.open(FRAME), str)


def test_equal_tables_have_equal_digests() -> None:
    """By content; copies too, and a saved example holds one line."""
    one, other = Table.open(FRAME), pickle.loads(pickle.dumps(Table.open(FRAME)))
    assert (digest(one), digest_of(one, 0)) == (digest(other), digest_of(other, 0))
    assert digest(one) != digest(Table.open(FRAME.head(3)))
    assert json.dumps(dspy.Example(data=one).toDict()) == '{"data": "Table(table, 4 rows, 3 columns)"}'


def test_frames_that_differ_in_one_row_have_different_digests() -> None:
    frames = [pd.DataFrame({"n": range(1000)}) for _ in range(3)]
    frames[2].loc[500, "n"] = 0
    first, same, other = (digest_of(frame, 10_000) for frame in frames)
    assert (first == same, first.whole, first.sha256 == other.sha256) == (True, False, False)


def test_a_foreign_interpreter_says_that_it_takes_none() -> None:
    """Before a model is paid."""
    rlm = RLM("data -> answer", interpreter_factory=dspy.LocalInterpreter)
    with dspy.context(lm=ScriptedLM([])), pytest.raises(TypeError, match="Input 'data' is a Table"):
        rlm(data=Table.open(FRAME))


def test_a_path_of_a_table_is_one(tmp_path: Path) -> None:
    """By its suffix."""
    assert isinstance(opened(written(tmp_path, ".tsv")), Table)


@pytest.mark.by_hand
def test_a_hundred_damaged_tables_neither_hang_nor_crash_the_host(tmp_path: Path) -> None:
    """Each is read, or refused with a reason."""
    pick = random.Random(7)
    frame = pd.concat([FRAME] * 300, ignore_index=True)
    files = [written(tmp_path, suffix, frame) for suffix in FILES]
    ended: collections.Counter[str] = collections.Counter()
    for number in range(100):
        path = files[number % len(files)]
        data = bytearray(path.read_bytes())
        at = pick.choice([0, pick.randrange(len(data)), max(0, len(data) - 600)])
        damage = pick.choice(["cut", "flip", "zero", "noise"])
        if damage == "cut":
            del data[pick.randrange(len(data)) :]
        elif damage == "flip":
            for _ in range(pick.choice([1, 10, 200])):
                data[pick.randrange(len(data))] ^= 1 << pick.randrange(8)
        else:
            part = len(data[at : at + 300])
            data[at : at + part] = bytes(part) if damage == "zero" else pick.randbytes(part)
        damaged = tmp_path / f"damaged{number}{path.suffix}"
        damaged.write_bytes(data)
        try:
            Table.open(damaged)
            ended["read"] += 1
        except UnreadableTable as error:
            ended["took its time" if "seconds" in str(error) else "refused"] += 1
    assert ended["took its time"] == 0
    assert ended["refused"] > 30
