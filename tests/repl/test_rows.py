"""A passage of a table is one row, in whatever form tables and records are written."""

from __future__ import annotations

import itertools
import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_dspy.repl.in_repl import passages, rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SHARED: dict[str, Any] = {}
for module in (rows, passages):  # one namespace, as in a REPL
    exec(Path(str(module.__file__)).read_text(encoding="utf-8"), SHARED)
find_passages: Callable[..., list[str]] = SHARED["find_passages"]

COLUMNS = ("well", "village", "depth", "dug")
NAMES = [*map("".join, itertools.product("BDGKLMNPRSTV", "aeiou", "lnrst"))]
WELLS = [(f"{name}a", f"{name}by", f"{at * 7 % 90}", f"{1700 + at}") for at, name in enumerate(NAMES)]
(KERTA,) = (row for row in WELLS if row[0] == "Kera")
QUESTION = "How deep is the well Kera, dug in the village?"


def wide(row: Sequence[str]) -> str:
    return "".join(cell.ljust(12) for cell in row).rstrip()


def fields(row: Sequence[str], line: str = "{}: {}", between: str = "\n") -> str:
    return between.join(line.format(name, cell) for name, cell in zip(COLUMNS, row, strict=True))


ROWS: dict[str, tuple[Callable[[Sequence[str]], str], str]] = {
    "CSV": (",".join, "\n"),
    "TSV": ("\t".join, "\n"),
    "Markdown": (lambda row: f"| {' | '.join(row)} |", "\n"),
    "columns of one width": (wide, "\n"),
    "a grid": (lambda row: f"|{'|'.join(cell.ljust(9) for cell in row)}|\n{'+---------' * 4}+", "\n"),
    "LaTeX": (lambda row: f"{' & '.join(row)} \\\\", "\n"),
    "MediaWiki": (lambda row: f"| {' || '.join(row)}\n|-", "\n"),
    "HTML": (lambda row: f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>", "\n"),
}


@pytest.mark.parametrize("form", ROWS)
def test_the_passage_of_a_table_is_a_row_below_the_names_of_the_columns(form: str) -> None:
    write, between = ROWS[form]
    lines = [write(row) for row in (COLUMNS, *WELLS)]
    text = "\n\n".join(["Water, listed", between.join(lines), "More to come."])
    header, row = (write(each).split("\n")[0] for each in (COLUMNS, KERTA))
    assert write(KERTA) in text
    assert find_passages(text, QUESTION)[0] == f"{header}\n{row}"


RECORDS: dict[str, tuple[Callable[[Sequence[str]], str], str]] = {
    "blocks": (fields, "\n\n"),
    "blocks with a title": (lambda row: f"## {row[0]}\n{fields(row, '- **{}**: {}')}", "\n\n"),
    "INI": (lambda row: f"[{row[0]}]\n{fields(row, '{} = {}')}", "\n\n"),
    "YAML": (lambda row: f"- {fields(row, between=f'{chr(10)}  ')}", "\n"),
    "XML": (lambda row: f"<item>\n{fields(row, '  <{0}>{1}</{0}>')}", "\n</item>\n"),
    "JSON": (lambda row: json.dumps(dict(zip(COLUMNS, row, strict=True)), indent=2), ",\n"),
    "JSON Lines": (lambda row: json.dumps(dict(zip(COLUMNS, row, strict=True))), "\n"),
    "pairs": (lambda row: fields(row, "{}={}", " "), "\n"),
    "sentences": (lambda row: "The well {} of {} is {} m deep. It was dug in {}.".format(*row), "\n"),
    "a list": (lambda row: "- {} ({}): {} m, {}".format(*row), "\n"),
    "log lines": (lambda row: "{3}-04-02 12:00:00 INFO well {0} of {1}: depth {2}".format(*row), "\n"),
}  # fmt: skip


@pytest.mark.parametrize("form", RECORDS)
def test_the_passage_of_records_is_one_record(form: str) -> None:
    write, between = RECORDS[form]
    text = f"Water, listed\n\n{between.join(map(write, WELLS))}\n\nMore to come."
    assert write(KERTA) in text
    best = find_passages(text, QUESTION)[0]
    assert best.rstrip("},\n ") == write(KERTA).strip("} \n")


@pytest.mark.parametrize("between", ["\n\n", "\n"])
@pytest.mark.parametrize("mark", [";", " | ", " / ", "   "])
def test_a_row_without_names_of_columns_comes_with_the_lines_above_its_table(mark: str, between: str) -> None:
    """They may say what the columns are, and are no passage of the rows below them."""
    legend = "Each line gives the well, its village, its depth in metres and the year in which it was dug."
    text = f"It rained.\n\n{legend}{between}" + "\n".join(mark.join(row) for row in WELLS)
    row = f"{legend}\n{mark.join(KERTA)}"
    assert find_passages(text, "What of Kera?") == [row]
    found = find_passages(text, "How deep is the well Kera?")
    assert row in found
    assert all(legend in passage and "Bala" not in passage for passage in found)


def test_the_first_row_of_a_table_without_names_is_no_header() -> None:
    """It may be the one row without a number: what it holds stands in other rows too."""
    rows_of = [("owner", "Ada Berg"), ("depth", "34"), ("dug", "1782")]
    text = "\n".join(f"({name}; {field}; {value})" for name, *_ in WELLS for field, value in rows_of)
    assert find_passages(text, "dug Kera")[0] == "(Kera; dug; 1782)"


def test_a_row_with_more_of_the_words_comes_before_the_first_one_with_the_name() -> None:
    lines = [f"{school},{year},{year % 90}" for school in ("Hov", "Kerta", "Sund") for year in range(1900, 1950)]
    text = "\n".join(["school,year,pupils", *lines])
    assert find_passages(text, "How many pupils had Kerta in 1931?")[0] == "school,year,pupils\nKerta,1931,41"


@pytest.mark.parametrize("form", [*ROWS, *RECORDS])
def test_a_table_and_a_list_of_records_consist_of_rows(form: str) -> None:
    write, between = (ROWS | RECORDS)[form]
    assert rows.consists_of_rows("The wells of the county\n\n" + between.join(map(write, WELLS)))  # type: ignore[no-untyped-call]


SAID = (
    "the pump of the east wing stands still",
    "nobody came",
    "Tea, sugar and a rope (20 m) were brought by boat",
    "who has seen my coat? It hung in the hall",
    "rain until noon; then fog",
)


@pytest.mark.parametrize(
    "form",
    ["[2024-05-{0:02} 06:1{1}] {2}", "{0} May 1924 | Bex | {2}.", "({0} May) Tam [hall]: {2}", "{0}:1{1}: {2}"],
)
def test_a_log_consists_of_entries_whatever_they_say(form: str) -> None:
    entries = (form.format(10 + at, at % 9, SAID[at % 5]) for at in range(20))
    assert rows.consists_of_entries("The log of the house\n\n" + "\n".join(entries))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("name", ["README.md", "LICENSE", "experiment/articles.md", "rlm_dspy/loop/rlm.py"])
def test_prose_and_code_consist_of_neither_rows_nor_entries(name: str) -> None:
    text = (Path(__file__).parents[2] / name).read_text(encoding="utf-8")
    for part in (text, text[:300], "", "one line", "x" * 9_000):
        assert not rows.consists_of_rows(part)  # type: ignore[no-untyped-call]
        assert not rows.consists_of_entries(part)  # type: ignore[no-untyped-call]


PROSE = """\
Kerta was a village of fishermen, and the well of Kerta was deep.
Nobody knows when it was dug, but the priest, who had a good memory,
used to say that his mother drank from it, as did hers.
It is 64 m deep.
"""


def test_the_lines_of_prose_and_of_code_are_no_rows() -> None:
    assert find_passages(PROSE, "How deep is the well of Kerta?", count=1) == [PROSE.strip()]
    code = Path(str(rows.__file__)).read_text(encoding="utf-8")
    assert "if line is None:\n        return None" in find_passages(code, "def _rlm_unit")[0]


@given(st.lists(st.text("ab1 |,;\t-=:.\n", max_size=30), max_size=12), st.text("ab1 ", max_size=9))
def test_a_passage_of_any_lines_ends_with_a_part_of_the_text(lines: list[str], words: str) -> None:
    text = "\n".join(lines)
    for passage in find_passages(text, words, chars=20):
        assert passage in text or passage.partition("\n")[2] in text
        assert all(line.strip() in text for line in passage.split("\n"))


HARD_ROWS = {
    "quoted commas": 'well,depth,note\nAda,"1,200",dry\nKerta,"2,400","wet, old"\nLund,"3,100",dry\n',
    "commas in Markdown": "| well | depth |\n|---|---|\n| Ada | 1 |\n| Kerta | 2 m, rock, sand, clay, rock |\n",
    "commas between bare bars": "well | depth\n--- | ---\nAda | 1\nKerta | 2 m, rock, sand, clay, rock\n",
    "commas between tabs": "well\tdepth\nAda\t1\nLund\t4\nKerta\t2 m, rock, sand, clay, rock\n",
    "returns": "| well | depth |\r\n|---|---|\r\n| Ada | 1 |\r\n| Kerta | 2 |\r\n| Lund | 4 |\r\n",
    "drawn boxes": "┌───────┬───────┐\n│ well  │ depth │\n├─────┼─────┤\n│ Ada   │ 1     │\n│ Kerta │ 2     │\n",
}


@pytest.mark.parametrize("form", HARD_ROWS)
def test_marks_within_cells_do_not_hide_the_names_of_the_columns(form: str) -> None:
    """Neither from a passage nor from what a model reads."""
    read: list[str] = []
    SHARED["llm_query"] = lambda prompt: read.insert(0, prompt) or "2"  # type: ignore[func-returns-value]
    (passage,) = find_passages(HARD_ROWS[form], "How deep is the well Kerta?", count=1)
    header, row = passage.split("\n")
    assert "well" in header
    assert "Kerta" in row
    SHARED["query_passages"](HARD_ROWS[form], "How deep is the well Kerta?")
    assert re.match(r"well: Kerta\ndepth: \"?2", read[0])


def test_a_bracket_of_code_is_no_line_under_the_names_of_columns() -> None:
    code = "let b = 2;\nfunction f(x) {\n  return x + 1;\n}\nconst kerta = f(a);\nlet c = 3;\n"
    assert find_passages(code, "kerta", count=1) == [code.strip()]


@pytest.mark.parametrize("between", ["", ",,\n" * 100_000])
def test_a_long_table_is_walked_up_once_for_all_its_rows(between: str) -> None:
    lines = "\n".join(
        f"{at},{name}a,{name} old" if at % 3 else f"{at},{name}a,dry" for at, name in enumerate(NAMES * 300)
    )
    started = time.process_time()
    found = find_passages(f"number,well,note\n{between}{lines}", "Bala Dela Gala Kela", count=100)
    assert len(found) == 100
    assert all(each.startswith("number,well,note\n") for each in found)
    assert time.process_time() - started < 5, "it took some 0.1 seconds for each row"


def test_a_row_finds_the_names_of_its_own_columns_among_tables_one_below_the_other() -> None:
    """Also where other rows of its table were walked up before."""
    columns = "abcdefgh"
    tables = [
        [f"Table\nname,{at}", *(f"{name}{at},{row}" for row, name in enumerate(NAMES[:99]))] for at in columns
    ]
    text = "\n".join(map("\n".join, tables))
    found = find_passages(text, " ".join(f"{name}{at}" for at in columns for name in NAMES[9:99:9]), 80)
    assert len(found) > 50
    for passage in found:
        header, row = passage.split("\n")
        assert header == f"name,{row.split(',')[0][-1]}"


def test_the_passage_of_a_record_below_a_heading_begins_with_the_heading() -> None:
    parts = [f"## {row[0]}\n\n{fields(('-', *row[1:]), '- {}: {}')}" for row in WELLS]
    text = "# Water, listed\n\n" + "\n\n".join(parts)
    (part,) = (part for part in parts if part.startswith("## Kera"))
    for question in ("How deep is Kera?", f"{KERTA[3]} {KERTA[2]}"):
        assert find_passages(text, question, count=1) == [part]
    assert rows.consists_of_rows(text)  # type: ignore[no-untyped-call]
