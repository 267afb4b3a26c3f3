"""Finds the spans of an input that another text repeats word for word."""

from __future__ import annotations

import bisect
import functools
import re
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from rlm_dspy.inputs import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from rlm_dspy.trajectory import Span

MAX_CHARS = 200_000_000
"""Longer inputs are not watched."""

_BLOCK_CHARS = 32
_MAX_BLOCKS = 200_000
_PLACES_KEPT = 4
_FIRST_COMPARED = 64
_PIECE_CHARS = 12
_MAX_PIECES = 200
_SCANNED_CHARS = 50_000_000
_MAX_MISSES = 200_000
_MAX_SPANS = 200
_MAX_DEPTH = 4
_BETWEEN_PIECES = re.compile(r"""[\n\r\t"'|]|\\n""")
_Match = tuple[int, int, int]
"""Start and end of a repeated part in the text, and its start in the input."""


@dataclass
class Source:
    """An input as text; a list or dict as its strings in order, joined by line breaks.

    Attributes:
        name: The input's name.
        text: Its text.
        items: Start and end in `text` of each item of a list or value of a dict; None for a `str`.
    """

    name: str
    text: str
    items: dict[Any, tuple[int, int]] | None = None

    @property
    def block(self) -> int:
        """Minimum length of a repeated part that the index finds: 32, more above 6.4 million characters."""
        return max(_BLOCK_CHARS, -(-len(self.text) // _MAX_BLOCKS))

    def whole(self) -> list[Span]:
        """Return the span of the whole text."""
        return [(self.name, 0, len(self.text))] if self.text else []

    def repeated_in(self, text: str) -> list[Span]:
        """Return the parts of this input that `text` repeats, in the order of the input, merged.

        Parts of twice `block` characters are always found; shorter ones if they stand alone between line
        breaks, quotes, tabs or bars. If the input contains a part several times, one place is returned.
        """
        if len(self.text) < 2 * _BLOCK_CHARS and _says_something(self.text) and self.text in text:
            return self.whole()
        matches = list(self._matches(text))
        spans = [(self.name, start, start + end - at) for at, end, start in matches]
        return merged([*spans, *self._pieces(list(_between(matches, text)))])

    @functools.cached_property
    def _places(self) -> dict[int, list[int]]:
        """Start of each block, by its hash."""
        index: dict[int, list[int]] = {}
        for start in range(0, len(self.text) - self.block + 1, self.block):
            places = index.setdefault(hash(self.text[start : start + self.block]), [])
            if len(places) < _PLACES_KEPT:
                places.append(start)
        return index

    def _matches(self, text: str) -> list[_Match]:
        places, block = self._places, self.block
        found: list[_Match] = []
        at = misses = 0
        while at + block <= len(text) and misses < _MAX_MISSES:
            starts = places.get(hash(text[at : at + block]), ())
            at_most = [self._extended(text, at, start) for start in starts]
            match = max(at_most, key=lambda match: match[1] - match[0], default=(at, at, 0))
            if match[1] - match[0] < block:  # no match, or another text with the same hash
                at, misses = at + 1, misses + 1
                continue
            while found and found[-1][0] >= match[0]:
                found.pop()  # a shorter part of this match, found at another place
            found.append(match)
            at = match[1]
        return [match for match in found if _says_something(text[match[0] : match[1]])]

    def _extended(self, text: str, at: int, start: int) -> _Match:
        """Extend a match of text and input around `at` and `start`."""
        own = self.text
        after = _agreement(
            lambda low, high: text[at + low : at + high] == own[start + low : start + high],
            min(len(text) - at, len(own) - start),
        )
        before = _agreement(
            lambda low, high: text[at - high : at - low] == own[start - high : start - low], min(at, start)
        )
        return at - before, at + after, start - before

    def _pieces(self, texts: Iterable[str]) -> Iterator[Span]:
        """Yield the positions of lines and quoted parts, as long as the search is cheap."""
        left, after = _SCANNED_CHARS, 0
        pieces = (piece.strip() for text in texts for piece in _BETWEEN_PIECES.split(text))
        long_ones = (piece for piece in pieces if len(piece) >= _PIECE_CHARS and _says_something(piece))
        for piece in islice(long_ones, _MAX_PIECES):
            for begin in dict.fromkeys((after, 0)):
                start = self.text.find(piece, begin)
                left -= (start if start >= 0 else len(self.text)) - begin
                if start >= 0:
                    after = start + len(piece)
                    yield self.name, start, after
                    break
            if left < 0:
                return


def sources_of(inputs: Mapping[str, Any]) -> tuple[dict[str, Source], dict[str, str]]:
    """Return the inputs that are or contain texts, and the reasons to leave out the others.

    Reads the files.

    Args:
        inputs: The inputs by name.
    """
    sources, left_out = {}, {}
    for name, value in inputs.items():
        try:
            sources[name] = _source(name, value)
        except (ValueError, OSError) as error:  # a file that is gone or not UTF-8 must not end the run here
            left_out[name] = str(error)
    return sources, left_out


def strings_in(value: Any, depth: int = _MAX_DEPTH) -> Iterator[str]:
    """Yield the strings in a value in order, from lists and dicts down to `depth` levels."""
    if isinstance(value, str | Text):
        yield str(value)
    elif depth and isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings_in(item, depth - 1)


def merged(spans: Iterable[Span], most: int | None = _MAX_SPANS) -> list[Span]:
    """Return the spans in order with touching ones merged; at most the `most` longest."""
    together: list[Span] = []
    for name, start, end in sorted(spans):
        if together and together[-1][0] == name and start <= together[-1][2]:
            together[-1] = (name, together[-1][1], max(end, together[-1][2]))
        elif start < end:
            together.append((name, start, end))
    longest = sorted(together, key=lambda span: span[1] - span[2])[:most]
    return sorted(longest)


def _source(name: str, value: Any) -> Source:
    size = _size(value)
    if size > MAX_CHARS:
        raise ValueError(f"{size:,} characters are more than the {MAX_CHARS:,} that are looked into")
    if isinstance(value, str | Text):
        return Source(name, str(value))
    if isinstance(value, list | tuple | dict) and size:
        return _joined(name, value)
    raise ValueError(f"a {type(value).__name__} without text")


def _joined(name: str, value: list[Any] | tuple[Any, ...] | dict[Any, Any]) -> Source:
    keyed = value.items() if isinstance(value, dict) else enumerate(value)
    parts, items, at = [], {}, 0
    for key, item in keyed:
        part = "\n".join(strings_in(item, _MAX_DEPTH - 1))
        parts.append(part)
        items[key] = (at, at + len(part))
        at += len(part) + 1
    return Source(name, "\n".join(parts), items)


def _size(value: Any) -> int:
    """Return the approximate number of characters of a value; bytes of a file, without opening it."""
    if isinstance(value, Text) and value.path:
        return value.path.stat().st_size
    return sum(map(len, strings_in(value)))


def _between(matches: list[_Match], text: str) -> Iterator[str]:
    """Yield the parts of the text outside all matches."""
    at = 0
    for start, end, _ in matches:
        yield text[at:start]
        at = max(at, end)
    yield text[at:]


def _says_something(text: str) -> bool:
    """Return whether a text is more than white space and rules, which occur everywhere."""
    return any(map(str.isalnum, text))


def _agreement(equal: Callable[[int, int], bool], limit: int) -> int:
    """Return the length of the common prefix of two texts, at most `limit`, by comparing doubling parts."""
    low, size = 0, _FIRST_COMPARED
    while low < limit and equal(low, min(low + size, limit)):
        low, size = min(low + size, limit), size * 2
    ends = range(low + 1, min(low + size, limit))
    return low + bisect.bisect_left(ends, True, key=lambda end: not equal(low, end)) if low < limit else low
