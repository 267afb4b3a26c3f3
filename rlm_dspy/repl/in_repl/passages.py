"""Defines `find_passages`, which ranks the parts of a text by the rare words that they share with a query.

Not imported: its source runs in any interpreter, in the same namespace as `functions.py`.
"""

import bisect as _rlm_bisect
import itertools as _rlm_itertools
import math as _rlm_math
import re as _rlm_re

_RLM_COMMON = 20_000
"""A word that stands in more places tells nothing, unless all words do."""


def find_passages(text, words, count=5, chars=300):
    """Return the parts of a text that share the most and the rarest words with `words`, the best first.

    Args:
        text: The text. Of a long one only the places of the words are looked at.
        words: A question, or words that the passage may have. Case and endings of words do not matter.
        count: The maximum number of passages.
        chars: The length of a passage in characters.
    """
    for name, value in {"text": text, "words": words}.items():
        if not isinstance(value, str):
            raise TypeError("find_passages takes a str as %s, not %s." % (name, type(value).__name__))
    folded = text.replace("\u0130", "i").lower()  # the only character whose lower case is longer
    places = _rlm_places(folded, set(_rlm_re.findall(r"\w+", words.lower())), len(text) / chars)
    starts, found = [place for place, _, _ in places], []
    for number, (start, _, _) in enumerate(places):
        inside = places[number : _rlm_bisect.bisect_left(starts, start + chars)]
        found.append((-sum({word: weight for _, word, weight in inside}.values()), start, inside[-1][0]))
    chosen = []
    for _, first, last in sorted(found):
        if len(chosen) == count:
            break
        start = max(0, (first + last - chars) // 2)
        if all(abs(start - other) >= chars for other in chosen):
            chosen.append(start)
    return [_rlm_whole_words(text, start, start + chars) for start in chosen]


def _rlm_places(folded, words, passages):
    """Return the places of the words that are not common, in order, each with its word and the word's weight."""
    stems = words | {word[: max(4, len(word) * 3 // 4)] for word in words}  # a whole word counts for more
    found = {stem: list(_rlm_itertools.islice(_rlm_starts(folded, stem), _RLM_COMMON)) for stem in stems}
    rare = {stem: starts for stem, starts in found.items() if len(starts) < _RLM_COMMON} or found
    return sorted(
        (start, stem, _rlm_math.log(1 + passages / len(starts)))
        for stem, starts in rare.items()
        for start in starts
    )


def _rlm_starts(folded, stem):
    """Yield where words begin with `stem`."""
    at = folded.find(stem)
    while at >= 0:
        if not at or not (folded[at - 1].isalnum() or folded[at - 1] == "_"):
            yield at
        at = folded.find(stem, at + 1)


def _rlm_whole_words(text, start, end):
    """Return a part of a text without the pieces of words at its ends."""
    part = text[start:end]
    if start and not text[start - 1].isspace():
        part = part.partition(" ")[2] or part
    if end < len(text) and not text[end].isspace():
        part = part.rpartition(" ")[0] or part
    return part.strip()
