"""The generated tasks: an independent reading of a text finds the gold, and splits share no template or name."""

from __future__ import annotations

import itertools
import re
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

EXPERIMENT = Path(__file__).resolve().parents[2] / "experiment"
sys.path.insert(0, str(EXPERIMENT / "study"))

import families  # noqa: E402  # scripts of that folder are run, not installed
import family_words  # noqa: E402
import wordings  # noqa: E402
from tasks import Task  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

SPLITS = family_words.SPLITS
NAMES = tuple(families.FAMILIES)
EVERY = [(family, split) for family in NAMES for split in SPLITS]
DAY = r"\d{1,2} [A-Z][a-z]+ \d{4}"


def pattern(template: str, **known: str) -> re.Pattern[str]:
    """Return what finds a template's sentences, its fields as groups; `known` ones are given."""
    kinds = {"day": DAY, "n": r"\d+", "value": rf"{DAY}|\d+|[A-Z][a-z]+", "label": "[a-z]+", "text": ".+"}
    parts = re.split(r"\{(\w+)\}", template)
    found = ""
    for literal, name in itertools.zip_longest(parts[::2], parts[1::2]):
        found += re.escape(literal)
        if name:
            found += re.escape(known[name]) if name in known else f"(?P<{name}>{kinds.get(name, r'[A-Z][a-z]+')})"
    return re.compile(rf"(?<![\w']){found}" if template[0].isalnum() or template[0] == "{" else found)


def asked_with(template: str, question: str) -> dict[str, str] | None:
    """Return the fields of a question, or None if it is no such one."""
    wide = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+?)", re.escape(template))
    found = re.fullmatch(wide, question)
    return found.groupdict() if found else None


def solve_needle(words: Any, context: str, question: str) -> list[str]:
    for attribute in words.attributes:
        if fields := asked_with(attribute.asked, question):
            return [
                match["value"] for told in attribute.told for match in pattern(told, **fields).finditer(context)
            ]
    raise AssertionError(question)


def solve_compare(words: Any, context: str, question: str) -> list[str]:
    for attribute in words.attributes:
        if attribute.compared and (fields := asked_with(attribute.compared, question)):
            values = {
                who: int(match["value"].split()[-1])
                for who in fields.values()
                for told in attribute.told
                for match in pattern(told, who=who).finditer(context)
            }
            assert len(set(values.values())) == 2
            return [(min if attribute.kind == "date" else max)(values, key=lambda who: values[who])]
    raise AssertionError(question)


def solve_needles(words: Any, context: str, question: str) -> list[str]:
    fields = asked_with(words.visits_asked, question)
    assert fields
    return [match["value"] for told in words.visits for match in pattern(told, **fields).finditer(context)]


def solve_table(words: Any, context: str, question: str) -> list[str]:
    fields = asked_with(words.table_asked, question)
    assert fields
    column = words.columns.index(fields["column"])
    (line,) = [line for line in context.splitlines() if re.search(rf"\b{fields['key']}\b", line)]
    return [re.findall(r"\b(?:[A-Z][a-z]+|\d+)\b", line)[column]]


def meant(words: Any, context: str) -> Iterator[tuple[str, str]]:
    """Yield who wrote each line and what it means, told by the sentence that stands on it."""
    sentences = {text: label for label, texts in words.labels.items() for text in texts}
    for line in context.splitlines():
        (label,) = {label for text, label in sentences.items() if line.endswith(text)}
        (who,) = {name for name in re.findall(r"[A-Z][a-z]+", line) if name.startswith(words.starts)}
        yield who, label


def solve_count(words: Any, context: str, question: str) -> list[str]:
    fields = asked_with(words.count_asked, question)
    assert fields
    line = pattern(words.labelled)
    found = [line.fullmatch(text) for text in context.splitlines()]
    assert all(found)
    return [str(sum((m["who"], m["label"]) == (fields["who"], fields["label"]) for m in found if m))]


def solve_classify(words: Any, context: str, question: str) -> list[str]:
    tally = Counter(label for _, label in meant(words, context))
    if fields := asked_with(words.number_asked, question):
        return [str(tally[fields["label"]])]
    assert asked_with(words.most_asked, question)
    return [max(tally, key=lambda label: tally[label])]


def solve_pairs(words: Any, context: str, question: str) -> list[str]:
    fields = asked_with(words.pairs_asked, question)
    assert fields
    tally = Counter(who for who, label in meant(words, context) if label == fields["label"])
    chosen = {who for who, times in tally.items() if times >= int(fields["least"])}
    return [f"{two} & {one}" for one, two in itertools.combinations(sorted(chosen), 2)]


SOLVE = {
    "needle": solve_needle,
    "compare": solve_compare,
    "needles": solve_needles,
    "table": solve_table,
    "count": solve_count,
    "classify": solve_classify,
    "pairs": solve_pairs,
}


@pytest.mark.parametrize(("family", "split"), EVERY)
@given(seed=st.integers(0, 10**6), chars=st.integers(2_000, 30_000))
def test_an_independent_reading_of_the_text_finds_the_gold_and_nothing_else(
    family: str, split: family_words.Split, seed: int, chars: int
) -> None:
    task = families.make(family, seed, chars, split)
    found = SOLVE[family](family_words.WORDS[split], task.context, task.question)
    assert found
    assert task.is_right("; ".join(found))
    assert chars <= len(task.context) <= chars + 200


@pytest.mark.parametrize(("family", "split"), EVERY)
def test_the_same_arguments_make_the_same_task_and_other_seeds_others(
    family: str, split: family_words.Split
) -> None:
    tasks = [families.make(family, seed, 3_000, split) for seed in (1, 1, 2, 3, 4, 5, 6)]
    assert tasks[0] == tasks[1]
    assert len({task.context for task in tasks}) == 6
    assert len({task.answer for task in tasks}) > 1


def test_an_answer_that_is_a_set_is_right_in_any_order_and_wrong_by_one_member() -> None:
    task = families.make("needles", 3, 3_000, "dev")
    assert task.is_right("\n".join(reversed(task.members)))
    assert not task.is_right(", ".join(task.members[1:]))
    assert not task.is_right(", ".join([*task.members, "Paris"]))
    assert not task.is_right("")


def test_words_of_the_question_in_an_answer_are_neither_right_nor_wrong() -> None:
    desk = Task("", "At which desk does Oru read?", "17")
    assert all(map(desk.is_right, ("17", "Desk 17", "the desk: 17")))
    assert not any(map(desk.is_right, ("", "desk", "Desk 18", "17 or 18", "Ume reads at desk 17")))
    bridge = Task("", "Which is older, Oru or Ume?", "Oru")
    assert bridge.is_right("Oru")
    assert not any(map(bridge.is_right, ("Ume", "", "older", "Oru or Ume")))


def test_a_pair_is_right_in_either_order_and_wrong_with_another() -> None:
    task = families.make("pairs", 3, 3_000, "dev")
    turned = [" & ".join(reversed(pair.split(" & "))) for pair in task.members]
    assert task.is_right("; ".join(turned))
    assert task.is_right(", ".join(turned))
    assert not task.is_right("; ".join([*turned[1:], "Solba & Quado"]))


def texts(value: Any) -> set[str]:
    """Return all strings in the words of a split that are sentences or words."""
    if isinstance(value, str):
        return {value}
    if isinstance(value, dict):
        return texts(list(value.values())) | set(value)
    if isinstance(value, family_words.Attribute):
        return texts([value.told, value.asked, value.compared or ()])
    return {text for part in value for text in texts(part)}


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(SPLITS, 2)))
def test_splits_share_no_template_no_label_and_no_name(one: family_words.Split, other: family_words.Split) -> None:
    here, there = (
        texts(
            [value for name, value in vars(family_words.WORDS[split]).items() if name not in ("middles", "ends")]
        )
        for split in (one, other)
    )
    assert here & there == set()
    starts = [family_words.WORDS[split].starts for split in (one, other)]
    assert not any(a.startswith(b) or b.startswith(a) for a, b in itertools.product(*starts))


@pytest.mark.parametrize("split", SPLITS)
def test_no_sentence_that_means_one_thing_ends_another(split: family_words.Split) -> None:
    sentences = [text for told in family_words.WORDS[split].labels.values() for text in told]
    assert not any(a != b and a.endswith(b) for a, b in itertools.product(sentences, repeat=2))


def asked_of(split: family_words.Split) -> set[str]:
    """Return the templates of the questions that have other words."""
    words = family_words.WORDS[split]
    asked = {words.visits_asked, words.table_asked, words.count_asked}
    return asked | {text for each in words.attributes for text in (each.asked, each.compared) if text}


def test_every_question_of_the_study_has_other_words_with_the_same_fields() -> None:
    assert set(wordings.REWORDED) == set().union(*map(asked_of, SPLITS))
    for template, other in wordings.REWORDED.items():
        assert sorted(re.findall(r"\{\w+\}", template)) == sorted(re.findall(r"\{\w+\}", other))
    words = [*wordings.REWORDED, *wordings.REWORDED.values(), *itertools.chain(*wordings.FURTHER.values())]
    assert len(words) == len(set(words))


@pytest.mark.parametrize("family", ["needle", "compare", "needles", "table", "count"])
def test_a_wording_changes_the_question_and_nothing_else(family: str) -> None:
    tasks = [families.make(family, 3, 3_000, "dev", wording) for wording in wordings.WORDINGS]
    assert len({task.question for task in tasks}) == 3
    assert len({(task.context, task.answer) for task in tasks}) == 1
    assert tasks[2].question.startswith(tasks[0].question)


def test_a_family_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(
        ValueError, match="needle, compare, needles, table, count, classify, pairs for train, dev, held_out, final"
    ):
        families.make("haystack", 1, 3_000, "train")
    with pytest.raises(ValueError, match="at least 2,000"):
        families.make("needle", 1, 100, "train")


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("12", "12.", True),
        ("12", "12.0", True),
        ("12", "$12", True),
        ("1234", "1,234", True),
        ("12", "-12", False),
        ("12", "\u221212", False),
        ("12", "112", False),
        ("12345", "1,2345", False),
        ("12.5", "12.50", False),
        ("9 March 1935", "9 march, 1935", True),
        ("10:30", "10:30", True),
        ("Well-ford 3-4", "well ford 3 4", True),
    ],
)
def test_an_answer_is_compared_without_case_and_punctuation_but_with_its_sign(
    gold: str, answer: str, right: bool
) -> None:
    assert Task("", "", gold).is_right(answer) is right


@pytest.mark.parametrize(
    "written", ["{}, {}, and {}", "{}, {} and {}", "1. {}\n2. {}\n3) {}", "- {}\n* {}\n\u2022 {}"]
)
def test_a_set_may_be_written_as_people_write_lists(written: str) -> None:
    task = next(t for t in (families.make("needles", n, 3_000, "dev") for n in range(50)) if len(t.members) == 3)
    assert task.is_right(written.format(*task.members))
    assert not task.is_right(written.format(*task.members[:2], "Paris"))
