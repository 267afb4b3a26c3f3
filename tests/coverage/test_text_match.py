"""Finding where a text comes from: what is told is true, and what was put there is found."""

from __future__ import annotations

import itertools
from hashlib import sha256
from typing import TYPE_CHECKING

from hypothesis import example, given
from hypothesis import strategies as st

from rlm_dspy.coverage import text_match
from rlm_dspy.coverage.text_match import Source, merged, sources_of, strings_in
from rlm_dspy.inputs import Text

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import pytest

    from rlm_dspy.trajectory import Span

LETTERS = st.text(alphabet="ab \n'é", max_size=400)
TEXTS = st.one_of(LETTERS, st.text(max_size=400))


def numbered(lines: int) -> str:
    """Return a text that says nothing twice over 32 characters."""
    return "".join(f"{n:06d} is line number {n * n}\n" for n in range(lines))


def places(found: Iterable[Span]) -> set[int]:
    """Return what the spans cover."""
    return {place for _, start, end in found for place in range(start, end)}


@given(TEXTS, st.lists(TEXTS, max_size=4))
@example("a" * 200, ["a" * 100])
@example("ab" * 100, ["b" + "ab" * 40])
def test_every_span_stands_in_the_text_word_for_word(own: str, others: list[str]) -> None:
    """Merged spans may touch, so each is a chain of repeated parts; alone, each part is repeated whole."""
    source = Source("context", own)
    for text in (*others, *(own[len(own) // 3 :] + other for other in others)):
        for at, end, start in source._matches(text):
            assert text[at:end] == own[start : start + end - at]
            assert end - at >= source.block
        for _, start, end in source._pieces([text]):
            assert own[start:end] in text


@given(st.integers(0, 20_000), st.integers(64, 3_000), st.text(max_size=200), st.text(max_size=200))
def test_a_planted_chunk_is_found_whatever_stands_around_it(at: int, size: int, before: str, after: str) -> None:
    own = numbered(1_000)
    chunk = own[at : at + size]
    source = Source("context", own)
    if len(chunk) < 2 * source.block:
        return
    covered = {
        place for _, start, end in source.repeated_in(before + chunk + after) for place in range(start, end)
    }
    assert covered >= set(range(at, at + len(chunk)))


@given(st.lists(st.integers(0, 990), min_size=1, max_size=20))
def test_lines_printed_out_of_order_are_found(chosen: list[int]) -> None:
    """But for the ends that two lines have in common by chance."""
    lines = [sha256(str(n).encode()).hexdigest() for n in range(1_000)]
    own = "\n".join(lines)
    covered = places(Source("context", own).repeated_in("\n".join(lines[n] for n in chosen)))
    for n in chosen:
        start = own.index(lines[n])
        assert covered >= set(range(start + 6, start + 58))


def test_short_lines_and_quoted_parts_are_found() -> None:
    own = numbered(100) + "Author: Maren Tolliver\n" + numbered(100)
    source = Source("context", own)
    for text in ("Author: Maren Tolliver", "x\nAuthor: Maren Tolliver\ny", "['Author: Maren Tolliver', 'z']"):
        assert [own[start:end] for _, start, end in source.repeated_in(text)] == ["Author: Maren Tolliver"]


def test_a_repr_is_found_in_spite_of_its_escapes() -> None:
    own = numbered(100)
    (span,) = Source("context", own).repeated_in(repr(own[300:600])[1:-1].replace("\\n", "\n"))
    assert span == ("context", 300, 600)
    share = sum(end - start for _, start, end in Source("context", own).repeated_in(repr(own[300:600])))
    assert share > 250


def test_a_part_that_stands_in_two_places_counts_once() -> None:
    own = "the same forty characters, all over again\n" * 10
    spans = Source("context", own).repeated_in("the same forty characters, all over again")
    assert sum(end - start for _, start, end in spans) < 60


def test_rules_and_blanks_say_nothing() -> None:
    own = "-" * 500 + "text" + " " * 500
    assert Source("context", own).repeated_in("-" * 100 + "\n" + " " * 100) == []
    assert Source("context", "?").repeated_in("why?") == []


def test_a_short_input_is_found_whole_or_by_a_part_that_stands_alone() -> None:
    source = Source("question", "Who founded Ovid Systems?")
    assert source.repeated_in("Q: Who founded Ovid Systems? A:") == [("question", 0, 25)]
    assert source.repeated_in("'Ovid Systems'") == [("question", 12, 24)]
    assert source.repeated_in("Who founded it?") == []


def test_a_text_of_millions_has_an_index_of_bounded_size() -> None:
    own = numbered(400_000)
    source = Source("context", own)
    assert source.block > 32
    assert source.repeated_in(f"...{own[7_000_000:7_001_000]}...") == [("context", 7_000_000, 7_001_000)]
    assert len(source._places) <= 200_001


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 50), st.integers(0, 50)), max_size=30))
def test_merged_spans_hold_the_same_places_and_do_not_touch(spans: list[tuple[str, int, int]]) -> None:
    together = merged(spans)
    for name in "ab":
        assert places(span for span in together if span[0] == name) == places(s for s in spans if s[0] == name)
    assert all(a[0] != b[0] or a[2] < b[1] for a, b in itertools.pairwise(together))


def test_of_too_many_spans_the_longest_are_kept() -> None:
    spans = [("context", n * 100, n * 100 + 10 + n % 50) for n in range(1_000)]
    kept = merged(spans, 100)
    assert len(kept) == 100
    assert min(end - start for _, start, end in kept) >= 55
    assert kept == sorted(kept)
    assert len(merged(spans, None)) == 1_000


def test_lists_and_dicts_are_their_strings_one_after_another() -> None:
    sources, left_out = sources_of(
        {"docs": ["one", {"a": "two", "n": 3}, "three"], "by_id": {"x": "ex", "y": Text("why")}}
    )
    assert (sources["docs"].text, sources["by_id"].text) == ("one\ntwo\nthree", "ex\nwhy")
    docs, by_id = sources["docs"], sources["by_id"]
    assert docs.items is not None
    assert [docs.text[slice(*docs.items[n])] for n in range(3)] == ["one", "two", "three"]
    assert by_id.items is not None
    assert by_id.text[slice(*by_id.items["y"])] == "why"
    assert left_out == {}


def test_what_is_no_text_or_too_long_is_left_out_and_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(text_match, "MAX_CHARS", 10)
    file = tmp_path / "latin.txt"
    file.write_bytes(b"caf\xe9")
    sources, left_out = sources_of({"n": 3, "long": "x" * 11, "file": Text.open(file), "text": "y"})
    assert set(sources) == {"text"}
    assert left_out["n"] == "a int without text"
    assert left_out["long"] == "11 characters are more than the 10 that are looked into"
    assert "not UTF-8" in left_out["file"]


def test_strings_are_found_down_to_four_levels() -> None:
    assert list(strings_in({"a": [{"b": ["deep"]}]})) == ["deep"]
    assert list(strings_in([[[[["deeper"]]]]])) == []
    own: list[object] = []
    own.append(own)
    assert list(strings_in(own)) == []
