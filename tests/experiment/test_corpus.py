"""The test corpus and its gold questions are what they claim to be."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

EXPERIMENT = Path(__file__).resolve().parents[2] / "experiment"
CORPUS = (EXPERIMENT / "articles.md").read_text(encoding="utf-8")
GOLD: dict[str, Any] = json.loads((EXPERIMENT / "questions.json").read_text(encoding="utf-8"))
QUESTIONS: list[dict[str, Any]] = GOLD["questions"]
HEADER = re.compile(r"(?m)^# (.+)\nAuthor: (.+)\nDate: (.+)\nTopic: (.+)\n")
TOPICS = {"AI trends", "agentic AI", "data science"}
LEAST_PER_KIND = {"fact": 30, "date_filter": 8, "count": 8, "comparison": 8, "list": 8}


@dataclass(frozen=True)
class Article:
    """One article: its header fields, and its text with the header."""

    title: str
    author: str
    date: str
    topic: str
    text: str


def split_articles(corpus: str) -> list[Article]:
    """Cut the corpus at its headers."""
    headers = list(HEADER.finditer(corpus))
    ends = [header.start() for header in headers[1:]] + [len(corpus)]
    return [
        Article(header[1], header[2], header[3], header[4], corpus[header.start() : end])
        for header, end in zip(headers, ends, strict=True)
    ]


ARTICLES = split_articles(CORPUS)
BY_TITLE = {article.title: article for article in ARTICLES}


def is_iso_date(text: object) -> bool:
    """Say whether the text is a calendar date written as YYYY-MM-DD."""
    try:
        return isinstance(text, str) and date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def is_filled_list(value: object) -> bool:
    """Say whether the value is a list of one or more different, non-empty strings."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, str) and item for item in value)
        and len(set(value)) == len(value)
    )


TYPE_CHECKS: dict[str, Callable[[object], bool]] = {
    "str": lambda value: isinstance(value, str) and bool(value),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": lambda value: isinstance(value, float),
    "date": is_iso_date,
    "list[str]": is_filled_list,
}


def stands_in(needle: str, text: str) -> bool:
    """Say whether the needle stands in the text as a whole word or number."""
    return re.search(rf"(?<![\w.,]){re.escape(needle)}(?![\w]|[.,]\d)", text) is not None


def selected(check: dict[str, Any]) -> list[Article]:
    """Return the articles that pass the filters of a check, in the order of the file."""
    return [
        article
        for article in ARTICLES
        if article.author == check.get("author", article.author)
        and article.topic == check.get("topic", article.topic)
        and check.get("from", "") <= article.date <= check.get("to", "9999")
        and check.get("title_contains", "") in article.title
        and check.get("mentions", "") in article.text
    ]


def compared(check: dict[str, Any]) -> object:
    """Return the label of the largest or smallest value; no tie is allowed."""
    values = {entry["label"]: entry["value"] for entry in check["values"]}
    best = max(values.values()) if check["pick"] == "max" else min(values.values())
    (label,) = [label for label, value in values.items() if value == best]
    return label


def recomputed(check: dict[str, Any]) -> object:
    """Derive the gold answer that a check stands for, from the headers and texts alone."""
    operation = check["op"]
    if operation == "compare":
        return compared(check)
    if operation == "earliest":
        return min(check["titles"], key=lambda title: BY_TITLE[title].date)
    articles = selected(check)
    if operation == "count":
        return len(articles)
    fields = [getattr(article, check["field"]) for article in articles]
    if operation == "count_distinct":
        return len(set(fields))
    if operation == "only":
        (only,) = fields
        return only
    assert operation == "list", operation
    return fields


def of_kind(*kinds: str) -> list[dict[str, Any]]:
    """Return the questions of the given kinds."""
    return [question for question in QUESTIONS if question["kind"] in kinds]


def with_check(*operations: str) -> list[dict[str, Any]]:
    """Return the questions whose check has one of the given operations, or any check if none is given."""
    checked = [question for question in QUESTIONS if "check" in question]
    return [question for question in checked if not operations or question["check"]["op"] in operations]


def by_id(questions: list[dict[str, Any]]) -> pytest.MarkDecorator:
    """Run a test once for each question, under the question's id."""
    return pytest.mark.parametrize("question", questions, ids=[question["id"] for question in questions])


def test_corpus_has_at_least_24_articles_and_100000_characters() -> None:
    """The corpus is too long to be read at one glance."""
    assert len(ARTICLES) >= 24
    assert len(CORPUS) >= 100_000


def test_every_title_line_opens_a_complete_header() -> None:
    """No line starts like a title without an author, a date and a topic after it."""
    assert len(re.findall(r"(?m)^# ", CORPUS)) == len(ARTICLES)
    for field in ("Author: ", "Date: ", "Topic: "):
        assert len(re.findall(rf"(?m)^{field}", CORPUS)) == len(ARTICLES)


def test_every_header_has_a_title_an_author_a_date_and_a_known_topic() -> None:
    """Header fields are filled in and free of stray white space."""
    for article in ARTICLES:
        for field in (article.title, article.author, article.date, article.topic):
            assert field, article.title
            assert field == field.strip(), article.title
        assert is_iso_date(article.date), article.title
        assert article.topic in TOPICS, article.title


def test_article_titles_are_unique() -> None:
    """A title names exactly one article."""
    assert len(BY_TITLE) == len(ARTICLES)


def test_articles_stand_in_order_of_publication() -> None:
    """Dates in the file never go back."""
    dates = [article.date for article in ARTICLES]
    assert dates == sorted(dates)


def test_articles_are_between_4000_and_5500_characters_long() -> None:
    """No article is a stub and none outgrows the rest."""
    assert [article.title for article in ARTICLES if not 4_000 <= len(article.text) <= 5_500] == []


def test_no_paragraph_occurs_twice() -> None:
    """The corpus is written, not padded with repeated text."""
    paragraphs = Counter(part for part in CORPUS.split("\n\n") if len(part) > 80)
    assert [part for part, times in paragraphs.items() if times > 1] == []


def test_question_file_names_its_version_and_source() -> None:
    """The gold file says which corpus it belongs to."""
    assert GOLD["version"] == 1
    assert (EXPERIMENT / GOLD["source"]).is_file()


def test_question_ids_and_texts_are_unique() -> None:
    """No question is asked twice, and each id names one question."""
    assert len({question["id"] for question in QUESTIONS}) == len(QUESTIONS)
    assert len({question["question"] for question in QUESTIONS}) == len(QUESTIONS)


def test_at_least_60_questions_and_enough_of_each_kind() -> None:
    """Each kind of question has its least number, and there is no other kind."""
    kinds = Counter(question["kind"] for question in QUESTIONS)
    assert len(QUESTIONS) >= 60
    assert set(kinds) == set(LEAST_PER_KIND)
    assert {kind: kinds[kind] for kind, least in LEAST_PER_KIND.items() if kinds[kind] < least} == {}


@by_id(QUESTIONS)
def test_question_names_known_articles_and_has_spans(question: dict[str, Any]) -> None:
    """A gold answer points to articles that exist and quotes at least one span."""
    assert question["question"].strip().endswith((".", "?"))
    assert question["articles"]
    assert set(question["articles"]) <= set(BY_TITLE)
    assert question["spans"]


@by_id(QUESTIONS)
def test_every_span_is_an_exact_quotation_from_a_named_article(question: dict[str, Any]) -> None:
    """Each span is 20 to 250 characters found in the file, inside one of the articles it names."""
    for span in question["spans"]:
        assert 20 <= len(span) <= 250
        assert CORPUS.count(span) == 1
        assert any(span in BY_TITLE[title].text for title in question["articles"])


@by_id(QUESTIONS)
def test_every_named_article_has_a_span(question: dict[str, Any]) -> None:
    """No article is named without a quotation from it."""
    for title in question["articles"]:
        assert any(span in BY_TITLE[title].text for span in question["spans"])


@by_id(QUESTIONS)
def test_answer_has_the_type_it_declares(question: dict[str, Any]) -> None:
    """The gold answer is a JSON value of the declared type, and other accepted answers are strings."""
    assert TYPE_CHECKS[question["type"]](question["answer"])
    assert all(isinstance(other, str) and other for other in question.get("accept", []))


@by_id(of_kind("fact"))
def test_fact_answer_stands_in_one_of_its_spans(question: dict[str, Any]) -> None:
    """A fact, or an accepted way to write it, occurs word for word in the proof."""
    forms = [str(question["answer"]), *question.get("accept", [])]
    assert any(stands_in(form, span) for form in forms for span in question["spans"])


@by_id(of_kind("fact"))
def test_fact_question_shares_a_rare_word_with_the_text_around_its_span(question: dict[str, Any]) -> None:
    """A plain search for some rare word of the question leads to the neighbourhood of the answer."""
    place = CORPUS.index(question["spans"][0])
    neighbourhood = CORPUS[max(0, place - 600) : place + 600]
    words = set(re.findall(r"[A-Za-z][\w-]{3,}", question["question"]))
    near = [word for word in words if word in neighbourhood]
    assert any(CORPUS.count(word) <= 60 for word in near)


@by_id(of_kind("list"))
def test_each_item_of_a_list_answer_stands_in_its_spans(question: dict[str, Any]) -> None:
    """Every item of a list is quoted by the proof."""
    for item in question["answer"]:
        assert any(stands_in(item, span) for span in question["spans"]), item


@by_id(of_kind("comparison"))
def test_comparison_quotes_both_sides(question: dict[str, Any]) -> None:
    """A comparison is proved by two spans and can be recomputed."""
    assert len(question["spans"]) == 2
    assert question["check"]["op"] in ("compare", "earliest")


@by_id(with_check("compare"))
def test_compared_numbers_stand_in_their_spans(question: dict[str, Any]) -> None:
    """The two numbers compared are those that the two spans state, in the same order."""
    for entry, span in zip(question["check"]["values"], question["spans"], strict=True):
        value = entry["value"]
        if not isinstance(value, str):
            assert any(stands_in(form, span) for form in (str(value), f"{value:,}"))


def test_every_count_and_date_filter_has_a_check() -> None:
    """Answers drawn from headers never rest on counting by hand."""
    assert [question["id"] for question in of_kind("count", "date_filter") if "check" not in question] == []


@by_id(with_check())
def test_checked_answer_is_the_recomputed_one(question: dict[str, Any]) -> None:
    """The gold answer equals what the headers, texts or compared numbers give."""
    assert question["answer"] == recomputed(question["check"])


@by_id(with_check("count", "list", "only", "count_distinct"))
def test_checked_question_names_exactly_the_selected_articles(question: dict[str, Any]) -> None:
    """The articles named in a filter question are those that the filter selects."""
    assert question["articles"] == [article.title for article in selected(question["check"])]
