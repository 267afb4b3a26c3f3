"""`find_records` reads the blocks of lines `name: value` that a text repeats."""

from __future__ import annotations

import copy
import json
import pickle
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_dspy import RLM, Files
from rlm_dspy.repl.in_repl import passages, records, rows
from rlm_dspy.testing import ScriptedLM
from tests.playing import block

if TYPE_CHECKING:
    from collections.abc import Callable

SHARED: dict[str, Any] = {}
for module in (rows, passages, records):  # one namespace, as in a REPL
    exec(Path(str(module.__file__)).read_text(encoding="utf-8"), SHARED)
find_records: Callable[..., list[dict[str, str]]] = SHARED["find_records"]
LETTERS = """Letters that were kept.

# To the mayor
From: Ada Kask
Sent: 1931-04-02

The bridge is closed.
Note: it rains.

# To the miller
From: Jon Berg
Sent: 1932-11-30
Copy:

Two sacks are missing.
"""


def test_a_record_has_its_fields_the_line_above_and_the_lines_below() -> None:
    first, second = find_records(LETTERS)
    assert first == {
        "title": "To the mayor",
        "From": "Ada Kask",
        "Sent": "1931-04-02",
        "text": "The bridge is closed.\nNote: it rains.",
    }
    assert (second["title"], second["Copy"], second["text"]) == ("To the miller", "", "Two sacks are missing.")


def test_blocks_with_other_names_are_no_records_but_parts_of_their_text() -> None:
    text = "".join(f"\nName: n{number}\nAge: {number}\n\nQ: why?\nA: because.\nZ: so.\n" for number in range(3))
    assert [each["Name"] for each in find_records(text + "Name: n3\nAge: 3\nTown: Aldo\n")][:2] == ["n0", "n1"]
    assert "Q: why?" in find_records("Q: a\n\n" + text.replace("Z: so.", "") + text)[0]["text"]


@pytest.mark.parametrize("line", ["- **Name**: a", "* Name: a", "  Name : a", "__Name:__ a"])
def test_names_may_stand_in_a_list_or_in_bold(line: str) -> None:
    text = f"{line}\nBorn in: Aldo\n\n{line}\nBorn in: Teal\n"
    assert [(each["Name"], each["Born in"]) for each in find_records(text)] == [("a", "Aldo"), ("a", "Teal")]


def test_the_front_matter_of_the_files_of_a_folder_gives_their_records(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("title: One\nowner: Ada\n\nIt rained.", encoding="utf-8")
    (tmp_path / "b.md").write_text("owner: Jon\ntitle: Two\n", encoding="utf-8")
    (tmp_path / "c.bin").write_bytes(b"\xff\x00")
    found = find_records(Files.open(tmp_path))
    assert [(each["file"], each["title"], each["owner"]) for each in found] == [
        ("a.md", "One", "Ada"),
        ("b.md", "Two", "Jon"),
    ]


@pytest.mark.parametrize(
    "text", ["", "It rained.\n\n" * 5, "Note: it rained.\n\nNote: it snowed.\n", "a: 1\nb: 2\n"]
)
def test_the_lines_are_the_records_of_a_text_without_blocks(text: str, tmp_path: Path) -> None:
    assert find_records(text) == [{"text": line} for line in text.split("\n") if line]
    (tmp_path / "log.txt").write_text("a\n\nb", encoding="utf-8")
    of_folder = find_records(Files.open(tmp_path))
    assert of_folder == [{"file": "log.txt", "text": "a"}, {"file": "log.txt", "text": "b"}]


def test_the_marks_around_the_fields_of_a_markdown_file_are_no_words() -> None:
    text = "---\nowner: Ada\ndate: 1931\n---\nIt rained."
    assert find_records([text]) == [
        {"file": "[0]", "title": "", "owner": "Ada", "date": "1931", "text": "It rained."}
    ]


def test_a_field_may_be_named_in_another_case() -> None:
    first = find_records(LETTERS)[0]
    assert (first["Title"], first["from"], first["SENT"]) == ("To the mayor", "Ada Kask", "1931-04-02")
    assert first.get("Title") is None, "a dict's other methods take the name as it is written"
    assert json.loads(json.dumps(first)) == first


def test_a_field_called_file_comes_before_the_name_of_the_file() -> None:
    found = find_records({"a.md": "file: one.pdf\nself: Ada\n"})
    assert found == [{"title": "", "file": "one.pdf", "self": "Ada", "text": ""}]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda record: pickle.loads(pickle.dumps(record))])
def test_a_copied_or_saved_record_is_a_plain_dict(copied: Callable[[dict[str, str]], dict[str, str]]) -> None:
    first = find_records(LETTERS)[0]
    assert copied(first) == first
    assert type(copied(first)) is dict


@pytest.mark.parametrize("name", ["Writer", 0])
def test_a_name_that_no_field_has_is_told_with_the_fields(name: object) -> None:
    with pytest.raises(KeyError, match=f"{name!r} is no field. The fields are: title, From, Sent, text"):
        find_records(LETTERS)[0][name]  # type: ignore[index]


@pytest.mark.parametrize(("value", "said"), [(7, "not int"), ({"a.txt": 7}, "not int at 'a.txt'")])
def test_another_type_is_refused_by_name(value: object, said: str) -> None:
    with pytest.raises(TypeError, match=f"find_records takes a str as text.*{said}"):
        find_records(value)


@given(st.lists(st.tuples(st.text("abc d", min_size=1), st.integers(0, 99)), min_size=2, max_size=9))
def test_every_block_is_a_record(rows: list[tuple[str, int]]) -> None:
    text = "\n".join(f"Name: {name}\nAge: {age}\n" for name, age in rows)
    assert [(each["Name"], each["Age"]) for each in find_records(text)] == [
        (name.strip(), str(age)) for name, age in rows
    ]


def test_it_is_there_in_a_run() -> None:
    code = "SUBMIT(answer=[each['title'] for each in find_records(text) if each['Sent'] > '1932'][0])"
    with dspy.context(lm=ScriptedLM([block(code)])):
        assert RLM("text -> answer", policy=None)(text=LETTERS).answer == "To the miller"
    with pytest.raises(ValueError, match="find_records"):
        RLM("find_records -> answer")


def test_records_can_be_submitted() -> None:
    with dspy.context(lm=ScriptedLM([block("SUBMIT(answer=find_records(text))")])):
        rlm = RLM("text -> answer: list[dict[str, str]]", policy=None)
        assert rlm(text=LETTERS).answer == find_records(LETTERS)


@pytest.mark.parametrize(
    "text",
    [
        "| boat | seats |\n| Auk | 12 |\n| Tern, old | 4 |\n",
        "# Boats\n\nboat | seats\n--- | ---\nAuk | 12\nTern, old | 4\n",
        "+---+---+\n| boat | seats |\n+===+===+\n| Auk | 12 |\n| Tern, old | 4 |\n+---+---+\n",
        'boat,seats\nAuk,12\n"Tern, old",4\n',
        "boat;seats\n\nAuk;12\nTern, old;4",
        "boat\tseats\nAuk\t12\nTern, old\t4\n",
        "Boats:\nboat       seats\nAuk        12\nTern, old  4\n",
        "boat & seats \\\\\n\\hline\nAuk & 12 \\\\\nTern, old & 4 \\\\\n",
        "{|\n! boat !! seats\n|-\n| Auk || 12\n|-\n| Tern, old || 4\n|}\n",
        (
            "<table>\n<tr><th>boat</th><th>seats</th></tr>\n<tr><td>Auk</td><td>12</td></tr>\n"
            "<tr><td>Tern, old</td><td>4</td></tr>\n</table>"
        ),
    ],
    ids=["pipes", "Markdown", "ruled", "CSV", "semicolons", "TSV", "columns", "LaTeX", "MediaWiki", "HTML"],
)
def test_a_row_of_a_table_is_a_record(text: str) -> None:
    """By the names of the columns, in any case."""
    assert find_records(text) == [{"boat": "Auk", "seats": "12"}, {"boat": "Tern, old", "seats": "4"}]
    assert find_records(text)[0]["Seats"] == "12"


@pytest.mark.parametrize(
    "text",
    [
        '[{"boat": "Auk", "seats": 12}, {"boat": "Tern, old", "seats": 4}]',
        '{"count": 2, "boats": [{"boat": "Auk", "seats": "12"}, {"boat": "Tern, old", "seats": 4}]}',
        '{"boat": "Auk", "seats": 12}\n\n{"boat": "Tern, old", "seats": 4}\n',
    ],
    ids=["a list", "a list in an object", "lines"],
)
def test_an_object_of_json_is_a_record(text: str) -> None:
    """Its numbers are texts, as in other records; what is nested stays as it is."""
    assert find_records(text) == [{"boat": "Auk", "seats": "12"}, {"boat": "Tern, old", "seats": "4"}]


def test_the_name_of_an_object_is_its_title_and_nested_values_stay() -> None:
    text = '{"Auk": {"seats": [1, 2], "old": true}, "Tern": {"seats": [], "old": null}}'
    assert find_records(text) == [
        {"title": "Auk", "seats": [1, 2], "old": "true"},
        {"title": "Tern", "seats": [], "old": "null"},
    ]
    assert find_records('[{"boat": "Auk"}]') == [{"boat": "Auk"}]
    assert find_records("[1, 2]") == [{"text": "[1, 2]"}]


@pytest.mark.parametrize(
    ("text", "titles"),
    [
        ("boats:\n- boat: Auk\n  seats: 12\n- boat: Tern\n  seats: 4\n", ["boats", ""]),
        ("[one]\nboat = Auk\nseats=12\n\n[two]\nboat = Tern\nseats=4\n", ["one", "two"]),
        ("boat: Auk\nseats: 12\nboat: Tern\nseats: 4\n", ["", ""]),
    ],
    ids=["YAML", "INI", "without empty lines"],
)
def test_a_name_that_comes_again_begins_a_record(text: str, titles: list[str]) -> None:
    found = find_records(text)
    assert [(each["title"], each["boat"], each["seats"]) for each in found] == [
        (titles[0], "Auk", "12"),
        (titles[1], "Tern", "4"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "boat=Auk; seats=12\nboat=Tern, old; seats=4",
        'boat=Auk seats=12\n\nboat="Tern, old" seats=4',
        "boat: Auk; seats: 12\nboat: Tern, old; seats: 4\n",
        "boat = Auk | seats = 12 |\nboat = Tern, old | seats = 4 |",
    ],
)
def test_a_line_of_pairs_is_a_record(text: str) -> None:
    assert find_records(text) == [{"boat": "Auk", "seats": "12"}, {"boat": "Tern, old", "seats": "4"}]


def test_a_line_with_one_pair_or_with_other_words_is_a_line() -> None:
    text = "level=info the boat left\nlevel=warn the boat came\nx=1"
    assert find_records(text) == [{"text": line} for line in text.splitlines()]


def test_empty_cells_and_lines_within_quotes_stay_in_their_row() -> None:
    assert find_records("| a | n |\n|---|---|\n| | 3 |\n| x | |") == [{"a": "", "n": "3"}, {"a": "x", "n": ""}]
    assert find_records('a,note\nx,"1\n2"\ny,3\n') == [{"a": "x", "note": "1\n2"}, {"a": "y", "note": "3"}]


@pytest.mark.parametrize(
    "text",
    [
        "Smith, John\nDoe, Jane\nRoe, Ann",
        "2026-01-01 12:00:00,123 INFO a\n2026-01-01 12:00:01,123 INFO b\n2026-01-01 12:00:02,123 INFO c",
        "Red, green\n1, 2\nNow words alone.\nAnd more.\nAnd more.\nAnd more.\nAnd more.",
    ],
    ids=["names", "log", "table of two rows"],
)
def test_lines_with_marks_but_without_columns_are_records_of_their_own(text: str) -> None:
    assert find_records(text) == [{"text": line} for line in text.splitlines()]


def test_paragraphs_are_no_records() -> None:
    """The error names the function for them. One file of paragraphs does not hide the lines of others."""
    prose = "It rained. The road was wet. Nobody came. So it went on.\n\n" * 3
    with pytest.raises(ValueError, match=r"query_passages\(text, question\)"):
        find_records(prose)
    assert find_records({"a.md": prose, "b.log": "one\ntwo"}) == [
        {"file": "b.log", "text": "one"},
        {"file": "b.log", "text": "two"},
    ]
    assert find_records("") == find_records({}) == []


@given(st.text(alphabet='ab1,;|\t"\n -', max_size=60))
def test_any_text_has_records_lines_or_says_that_it_has_none(text: str) -> None:
    for each in find_records(text):
        assert each


def test_a_field_called_title_or_text_keeps_its_value() -> None:
    text = "id: 1\ntext: hello\n\nid: 2\ntext: bye\nTo all.\n"
    assert [each["text"] for each in find_records(text)] == ["hello", "bye\nTo all."]
    text = "Title: One\nText: a\n\nTitle: Two\nText: b\n"
    assert [(each["title"], each["text"]) for each in find_records(text)] == [("One", "a"), ("Two", "b")]


def test_a_name_that_a_record_has_twice_keeps_all_values() -> None:
    letter = "From: Ada\nReceived: by a\nReceived: by b\nSubject: rain\n\nIt rains.\n\n"
    first, second = find_records(letter + letter)
    assert first == second
    assert (first["From"], first["Received"], first["text"]) == ("Ada", "by a\nby b", "It rains.")


def test_the_lines_of_a_dialogue_are_its_records() -> None:
    """Nothing that a speaker says is lost."""
    text = "Ada: Hello.\nJon: Yes?\nJon: Well?\nAda: It rains.\nAda: Again.\nJon: So it does."
    assert find_records(text) == [{"text": line} for line in text.splitlines()]


def test_the_name_of_an_object_of_yaml_is_the_title_of_its_own_record() -> None:
    text = "Auk:\n  seats: 12\n  year: 1900\nTern:\n  seats: 4\n  year: 1931\n"
    assert [(each["title"], each["seats"], len(each)) for each in find_records(text)] == [
        ("Auk", "12", 4),
        ("Tern", "4", 4),
    ]


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x1c"])
def test_only_the_ends_of_lines_part_records(mark: str) -> None:
    lines = [
        {"boat": f"Auk{mark}old", "seats": "12"},
        {"boat": "Tern", "seats": "4"},
        {"boat": "Gull", "seats": "3"},
    ]
    text = "\r\n".join(json.dumps(each, ensure_ascii=False).replace(r"\u001c", "-") for each in lines)
    assert len(find_records(text)) == 3
    rows = "\r\n".join(["boat,seats", *(f"{each['boat']},{each['seats']}" for each in lines)])
    assert find_records(rows) == lines


@pytest.mark.parametrize(
    "text", ["boat,seats\nAuk,12\nTern,4", '[{"boat": "Auk", "seats": 12}, {"boat": "Tern", "seats": 4}]']
)
def test_a_mark_of_the_byte_order_is_no_part_of_a_text(text: str) -> None:
    assert find_records("\ufeff" + text) == [{"boat": "Auk", "seats": "12"}, {"boat": "Tern", "seats": "4"}]


def test_the_rows_after_a_note_or_below_another_header_are_records_too() -> None:
    boats = "boat,seats\nAuk,12\nTern,4\nGull,3\n"
    note = "Counted by the harbour:\n"
    last = {"boat": "Gull", "seats": "3"}
    for text in (boats + note + "Ruff,7\n", boats + "Odd,2,sunk\nRuff,7\n", boats + note + "boat,seats\nRuff,7\n"):
        assert find_records(text)[2:] == [last, {"boat": "Ruff", "seats": "7"}]
    houses = "house,rooms\nRed,3\nBlue,4\n"
    assert find_records(f"Boats\n\n{boats}\nHouses\n\n{houses}")[2:] == [
        last,
        {"house": "Red", "rooms": "3"},
        {"house": "Blue", "rooms": "4"},
    ]


def test_empty_cells_do_not_tell_whether_a_column_is_one_of_numbers() -> None:
    assert find_records("a,b\nAda,\nKerta,7\n,\nMond,\n")[1] == {"a": "Kerta", "b": "7"}


def test_the_title_is_the_heading_above_and_no_line_of_the_record_before() -> None:
    markdown = "## Ada\n\n- Age: 3\n- Town: Hov\n\nAda likes rain.\n\n## Jon\n\n- Age: 4\n- Town: Lund\n"
    first, second = find_records(markdown)
    assert (first["title"], first["text"], second["title"]) == ("Ada", "Ada likes rain.", "Jon")
    yaml = "- name: Ada\n  tags:\n    - x\n    - y\n- name: Jon\n  tags:\n    - z\n"
    assert [(each["title"], each["text"]) for each in find_records(yaml)] == [("", "- x\n    - y"), ("", "- z")]


def test_cells_between_tabs_may_be_quoted_or_begin_with_a_quote() -> None:
    rows = 'boat\tnote\tseats\nAuk\t"old\nand ""dry"""\t12\nTern\t\t4\n'
    assert find_records(rows)[0] == {"boat": "Auk", "note": 'old\nand "dry"', "seats": "12"}
    rows = 'boat\tnote\tseats\nAuk\t"old" one\t12\nTern\t"dry\t4\n'
    assert [each["note"] for each in find_records(rows)] == ['"old" one', '"dry']


def test_a_long_line_of_spaces_is_read_at_once() -> None:
    text = f"a{' ' * 10_000_000}b: 3\n"
    started = time.process_time()
    assert find_records(text) == [{"text": text.strip("\n")}]
    assert time.process_time() - started < 4, "it took 8 seconds"
