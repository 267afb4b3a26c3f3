"""`find_passages` ranks the parts of a text by the rare words that they share with a query."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_dspy import RLM, Files, Limits
from rlm_dspy.repl.in_repl import passages, rows
from rlm_dspy.testing import ScriptedLM
from tests.playing import block

if TYPE_CHECKING:
    from collections.abc import Callable

SHARED: dict[str, Any] = {}
for module in (rows, passages):  # one namespace, as in a REPL
    exec(Path(str(module.__file__)).read_text(encoding="utf-8"), SHARED)
find_passages: Callable[..., list[str]] = SHARED["find_passages"]
COMMON = ["the", "of", "and", "a", "road", "river", "to", "in", "was", "tree", "house", "stone"]


def filler(words: int) -> str:
    chance = random.Random(7)
    return " ".join(chance.choice(COMMON) for _ in range(words))


TEXT = f"{filler(5_000)} Kadri Vaheste kept the lighthouse until 1931. {filler(5_000)}"


def test_the_passage_with_the_rare_words_comes_first() -> None:
    first, *others = find_passages(TEXT, "Until when did Vaheste keep the lighthouse?")
    assert "Kadri Vaheste kept the lighthouse until 1931." in first
    assert len(others) == 4


@pytest.mark.parametrize("words", ["VAHESTE", "vaheste", "Vahestes", "lighthouses"])
def test_case_and_endings_do_not_matter(words: str) -> None:
    assert "1931" in find_passages(TEXT, words)[0]


def test_passages_do_not_overlap_and_are_bounded() -> None:
    found = find_passages(filler(5_000), "river stone", count=8, chars=200)
    assert len(found) == len(set(found)) == 8
    assert all(len(part) <= 200 for part in found)


def test_a_passage_holds_the_whole_sentence_and_the_whole_line_of_the_words() -> None:
    long = "Of the files of Marlow, which had been drawn at random, the auditors found fault with 3.8 per cent. "
    text = "It rained. " * 50 + long + "It rained. " * 50
    assert long.strip() in find_passages(text, "fault files Marlow auditors", chars=80)[0]
    rows = "\n".join(f"name=n{number}; floor={number % 7}; desk={number * 3}" for number in range(500))
    assert find_passages(rows, "At which desk is n77?", count=1, chars=40) == ["name=n77; floor=0; desk=231"]


def test_the_word_itself_counts_for_more_than_other_words_that_begin_like_it() -> None:
    others = " ".join(
        f"Tolliver{end} reads at desk {number} of the library." for number, end in enumerate("abcdef")
    )
    text = f"{others} {filler(300)}. At the library Tolliver has desk 94. {filler(300)}."
    assert "desk 94" in find_passages(text, "At which desk does Tolliver read?", chars=100)[0]


@pytest.mark.parametrize("mark", [" | ", "\t", ";", ","])
def test_a_passage_of_rows_begins_with_the_names_of_the_columns(mark: str) -> None:
    rows = [mark.join((f"Ship{number}", str(number * 7), str(number * 3))) for number in range(500)]
    text = "\n".join(["The harbour, in numbers:", mark.join(("ship", "berth", "crew")), *rows, "", "End."])
    first, *lines = find_passages(text, "Ship77", count=1, chars=60)[0].split("\n")
    assert first == mark.join(("ship", "berth", "crew"))
    assert rows[77] in lines
    assert find_passages(text, "berth", count=1, chars=40)[0].count("berth") == 1


def test_a_passage_of_a_table_has_only_the_rows_with_the_words() -> None:
    """Those beside it would be read for it."""
    rows = [f"| {name} | {number * 37 % 1000} |" for number, name in enumerate([*"abcdefgh" * 40, "Teal", "Sund"])]
    table = "\n".join(["| boat | length |", "|---|---|", *rows])
    first, second = find_passages(table, "What is the length of the boat Teal?")
    assert first == "| boat | length |\n| Teal | 840 |"
    assert second == "| boat | length |", "the names of the columns, as the question has them"


def test_a_row_above_a_drawn_line_names_the_columns_also_of_years_and_words() -> None:
    rows = [f"| {name} | {name}berg | 12 |" for name in ("Aldo", "Teal", "Sund", "Hov") * 20]
    text = "\n".join(["| | Town | 2024 |", "|---|:--|--:|", *rows, "| Rauma | Oulu | 15 |"])
    assert find_passages(text, "Rauma", count=1, chars=25) == ["| | Town | 2024 |\n| Rauma | Oulu | 15 |"]


def test_rows_without_names_of_columns_and_lines_of_prose_get_none() -> None:
    rows = "\n".join(f"{number};Ship{number};{number * 3}" for number in range(500))
    assert find_passages(rows, "Ship77", count=1, chars=30) == ["77;Ship77;231"]
    prose = "\n".join(f"Then, by land, Ship{number} was moved." for number in range(500))
    assert find_passages(prose, "Ship77", count=1, chars=33) == ["Then, by land, Ship77 was moved."]


def test_a_name_counts_for_more_than_a_rarer_word_that_is_none() -> None:
    text = (
        f"A crew left. {filler(900)} Sund: 1594, Hov: 1612. {filler(900)} The berth of Sund is let. {filler(900)}"
    )
    named, lower = (find_passages(spelled, "the crew of Sund", chars=60)[0] for spelled in (text, text.lower()))
    assert "Sund" in named
    assert "crew" in lower


def test_words_in_one_sentence_count_for_more_than_in_two() -> None:
    scattered = "Mara painted what she saw. The bicycle of Jonas cost 40 crowns."
    text = "\n".join(
        [scattered, filler(300), f"What {filler(3)}. " * 20, filler(300), "The bicycle of Mara cost 75 crowns."]
    )
    assert "75 crowns" in find_passages(text, "What did the bicycle of Mara cost, in crowns?")[0]


def test_words_that_are_not_there_give_nothing() -> None:
    assert find_passages(TEXT, "zeppelin") == find_passages("", "river") == find_passages(TEXT, "") == []


def test_a_character_that_gets_longer_in_lower_case_moves_no_passage() -> None:
    assert "1931" in find_passages("İ" * 500 + TEXT, "Vaheste")[0]


@pytest.mark.parametrize(
    ("text", "words"), [({"a"}, "a"), ("a", ["a"]), (None, "a"), (b"a", "a"), ([b"a"], "a"), ({"n": 1}, "a")]
)
def test_other_types_are_refused_by_name(text: object, words: object) -> None:
    with pytest.raises(TypeError, match=r"find_passages takes a str as (text|words).* not [a-zA-Z]+"):
        find_passages(text, words)


SEVERAL = {
    "may.txt": "The mast was painted.",
    "june.txt": f"{filler(300)}\nVaheste kept the lighthouse until 1931.",
}


def test_a_passage_of_one_of_several_texts_begins_with_its_name() -> None:
    passage, *_ = find_passages(SEVERAL, "Until when did Vaheste keep the lighthouse?", chars=60)
    assert passage.startswith("june.txt: ")
    assert passage.endswith("Vaheste kept the lighthouse until 1931.")
    assert find_passages(list(SEVERAL.values()), "mast painted") == ["[0]: The mast was painted."]
    assert find_passages({}, "mast") == find_passages([], "mast") == []


@given(st.lists(st.text("ab c.\n|,", max_size=60), max_size=6), st.integers(1, 30))
def test_no_passage_holds_parts_of_two_texts(texts: list[str], chars: int) -> None:
    for passage in find_passages(texts, "ab a b c", count=9, chars=chars):
        number, _, text = passage.partition(": ")
        assert text.rpartition("\n")[2] in texts[int(number.strip("[]"))]


def test_a_folder_is_searched_without_the_files_that_are_not_text(tmp_path: Path) -> None:
    for name, text in SEVERAL.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "photo.bin").write_bytes(b"\xff\xfe\x00 Vaheste")
    code = "SUBMIT(answer=query_passages(files, 'Until when did Vaheste keep the lighthouse?'))"
    lm = ScriptedLM(act=[block(code)], query=lambda messages: messages[-1]["content"])
    with dspy.context(lm=lm):
        asked = RLM("files: Files -> answer", policy=None)(files=Files.open(tmp_path)).answer
    assert "june.txt: " in asked
    assert "until 1931" in asked
    assert "photo.bin" not in asked


def test_a_folder_that_is_too_large_is_refused_with_the_fix() -> None:
    class Folder(dict[str, str]):
        sizes: ClassVar = {"big.txt": 100_000_001}

    with pytest.raises(ValueError, match=r"at most 100 MB\. Give it some of the files: .*grep"):
        find_passages(Folder(), "a")


@given(st.text(max_size=400), st.text(max_size=40), st.integers(1, 5), st.integers(1, 60))
def test_every_passage_is_a_part_of_the_text(text: str, words: str, count: int, chars: int) -> None:
    found = find_passages(text, words, count, chars)
    assert len(found) <= count
    assert all(part in text and len(part) <= 2 * chars for part in found)


@pytest.mark.parametrize("call", ["find_passages('text', 'Vaheste')", "find_records('text')"])
def test_the_name_of_a_variable_is_not_taken_for_its_text(call: str) -> None:
    lm = ScriptedLM([block(call), block("SUBMIT(answer=text[0])")])
    with dspy.context(lm=lm):
        step = RLM("text -> answer", policy=None)(text=TEXT).trajectory[0]
    assert "leave out the quotes of 'text'" in step["output"]


def test_it_stays_defined_in_a_run_and_its_name_is_reserved() -> None:
    lm = ScriptedLM([block("find_passages = 1"), block("SUBMIT(answer=find_passages(text, 'Vaheste')[0])")])
    with dspy.context(lm=lm):
        assert "1931" in RLM("text -> answer", policy=None)(text=TEXT).answer
    with pytest.raises(ValueError, match="find_passages"):
        RLM("find_passages -> answer")


@pytest.mark.parametrize(
    ("asked", "replies", "read"),
    [
        ("", ["1931"], [1]),
        ("", ["Unknown.", "1931"], [1, 3]),
        ("", ["unknown", "The text: unknown", "unknown"], [1, 3, 8]),
        (", at_least=8", ["unknown"], [8]),
        (", count=2", ["unknown", "1931"], [1, 2]),
    ],
)
def test_a_sub_call_reads_the_best_passage_and_more_if_that_does_not_tell(
    asked: str, replies: list[str], read: list[int]
) -> None:
    text = "\n\n".join(f"Kadri Vaheste kept the lighthouse of {place}. {filler(60)}." for place in range(40))
    saw, left = [], iter(replies)

    def query(messages: list[dict[str, str]]) -> str:
        saw.append(messages[-1]["content"].count("lighthouse of"))
        return next(left)

    code = f"SUBMIT(answer=query_passages(text, 'Until when did Vaheste keep the lighthouse?'{asked}))"
    with dspy.context(lm=ScriptedLM(act=[block(code)], query=query)):
        assert RLM("text -> answer", policy=None)(text=text).answer == replies[-1]
    assert saw == read


def test_the_first_sub_call_reads_enough_passages_to_have_the_rare_names_of_the_question() -> None:
    """The best passage has more of its words, but tells of somebody else."""
    mends = "Jon Berg mends bicycles in a small town called Sund."
    text = "\n\n".join([filler(900), mends, filler(90), "Ada Kask runs a workshop in Hov.", filler(900)])
    lm = ScriptedLM(
        act=[block("SUBMIT(answer=query_passages(text, 'Kask mends bicycles in a town. What is it called?'))")],
        query=lambda messages: "Hov" if "Ada Kask" in messages[-1]["content"] else "Sund",
    )
    with dspy.context(lm=lm):
        prediction = RLM("text -> answer", policy=None)(text=text)
    assert (prediction.answer, prediction.usage["calls"]) == ("Hov", 2)


def test_a_text_without_the_words_of_the_question_costs_no_call() -> None:
    with dspy.context(lm=ScriptedLM(act=[block("SUBMIT(answer=query_passages(text[:0], 'Who?'))")])):
        prediction = RLM("text -> answer", policy=None)(text=TEXT)
    assert (prediction.answer, prediction.usage["calls"]) == ("unknown", 1)


def test_a_run_without_sub_calls_is_not_offered_them() -> None:
    for most, offered in ((0, False), (5, True)):
        lm = ScriptedLM([block("SUBMIT(answer=text[0])")])
        with dspy.context(lm=lm):
            RLM("text -> answer", policy=None, limits=Limits(max_llm_calls=most))(text=TEXT)
        assert ("query_passages" in str(lm.script.calls[0])) is offered
