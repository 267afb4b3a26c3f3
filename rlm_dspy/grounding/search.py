"""Finds where a text stands in the inputs of a run. Large files are read in pieces."""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlm_dspy.inputs import Files, Text
from rlm_dspy.inputs.text import READ_WHOLE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import BinaryIO

CONTEXT = 64
"""Characters on each side of a place that tell it from others."""
_PIECE_CHARS = 4_000_000
_MAX_PLACES = 200
_MAX_SCANNED_CHARS = 500_000_000
"""Characters that the searches of one run look at: well below a second."""
Item = str | int | None


@dataclass(frozen=True)
class Found:
    """A place where a text stands.

    Attributes:
        input: The input's name.
        item: The key of the item of a dict, list or folder that holds it; None in a text.
        start: Its offset in the text or item, in characters.
        before: The text before it.
        after: The text after it.
    """

    input: str
    item: Item
    start: int
    before: str
    after: str


class Search:
    """Searches the texts among the inputs of one run: a text, and those in a list, dict or folder.

    Args:
        inputs: The inputs by name. Of a folder, the files that were read are searched.

    Attributes:
        complete: Whether all inputs that can hold text are searched.
    """

    def __init__(self, inputs: Mapping[str, object]) -> None:
        self._inputs = inputs
        self._left = _MAX_SCANNED_CHARS
        self._known: dict[tuple[str, int, int, bool], list[Found] | None] = {}
        self.complete = all(map(_is_searched, inputs.values()))

    def find(
        self, text: str, before: int = CONTEXT, after: int = CONTEXT, *, words: bool = True
    ) -> list[Found] | None:
        """Return the places where a text stands.

        Args:
            text: The text.
            before: How many characters before each place to return.
            after: How many after it.
            words: Whether it must stand as whole words.

        Returns:
            The places in the order of the inputs; None if there are more than 200, or too much was searched.
        """
        key = text, before, after, words
        if key not in self._known:
            self._known[key] = self._found(*key)
        return self._known[key]

    def _found(self, text: str, before: int, after: int, words: bool) -> list[Found] | None:
        found: list[Found] = []
        for name, value in self._inputs.items():
            for item, pieces in _texts(value):
                if pieces is None:
                    self.complete = False
                    continue
                for start, left, right in _places(self._counted(pieces), text, before, after, words=words):
                    found.append(Found(name, item, start, left, right))
                    if len(found) > _MAX_PLACES:
                        return None
                if self._left < 0:
                    return None
        return found

    def _counted(self, pieces: Iterable[str]) -> Iterator[str]:
        for piece in pieces:
            self._left -= len(piece)
            if self._left < 0:
                return
            yield piece


def places_in(within: str, text: str, *, words: bool = True) -> Iterator[int]:
    """Yield the offsets at which a text stands in another, as whole words or anywhere."""
    start = within.find(text)
    while start >= 0:
        end = start + len(text)
        is_part = (text[0].isalnum() and within[start - 1 : start].isalnum()) or (
            text[-1].isalnum() and within[end : end + 1].isalnum()
        )
        if not (words and is_part):
            yield start
        start = within.find(text, start + 1)


def is_large(text: str | Text) -> bool:
    """Whether a text, or its file, is longer than what is read whole."""
    if isinstance(text, Text) and text.path:
        return text.path.stat().st_size > READ_WHOLE_BYTES
    return len(text) > READ_WHOLE_BYTES


def _is_searched(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(item, str | Text | int | float | None) for item in value.values())
    if isinstance(value, list | tuple):
        return all(isinstance(item, str | Text | int | float | None) for item in value)
    return isinstance(value, str | Text | Files | int | float | None)


def _texts(value: object) -> Iterator[tuple[Item, Iterable[str] | None]]:
    """Yield the texts of an input with their keys; None for one that cannot be read."""
    if isinstance(value, str | Text):
        yield None, _pieces(value)
    elif isinstance(value, Files):
        for name in sorted(value.opened):
            try:
                whole = value.whole(name)
            except (KeyError, OSError, ValueError):  # it has changed, or is too large beside the others
                yield name, None
                continue
            yield name, [whole] if isinstance(whole, str) else _read(whole.reader)
    elif isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(item, str | Text):
                yield key, _pieces(item)


def _pieces(text: str | Text) -> Iterable[str]:
    return _read(text.reader) if isinstance(text, Text) and text.path and is_large(text) else [str(text)]


def _read(opened: Callable[[], BinaryIO]) -> Iterator[str]:
    """Yield the pieces of a file, which is opened for the first of them: what is never read is never opened."""
    raw = io.BufferedReader(opened())  # type: ignore[type-var]
    with io.TextIOWrapper(raw, encoding="utf-8-sig", errors="replace") as texts:
        while piece := texts.read(_PIECE_CHARS):
            yield piece


def _places(
    pieces: Iterable[str], text: str, before: int, after: int, *, words: bool
) -> Iterator[tuple[int, str, str]]:
    """Yield offset, text before and text after of each place. One near the end of a piece waits for the next."""
    held, base, done = "", 0, 0  # what of the pieces is held, its offset, and up to where it was searched
    for piece in itertools.chain(pieces, [""]):
        held += piece
        end = len(held) - (len(text) + after if piece else 0)
        if end <= done:
            continue
        skipped = max(0, done - 1)  # one character more tells a whole word
        for start in places_in(held[skipped:], text, words=words):
            at = start + skipped
            if done <= at < end:
                stop = at + len(text)
                yield base + at, held[max(0, at - before) : at], held[stop : stop + after]
        cut = max(0, end - max(before, 1))
        held, base, done = held[cut:], base + cut, end - cut
