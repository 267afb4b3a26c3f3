"""Defines `find_passages`, which ranks the parts of a text by the rare words that they share with a query.

`query_passages` asks a model about the best of them. Not imported: the source runs in any interpreter, in the same
namespace as `functions.py`.
"""

import bisect as _rlm_bisect
import itertools as _rlm_itertools
import math as _rlm_math
import re as _rlm_re
from collections.abc import Mapping as _RlmMapping
from os.path import commonprefix as _rlm_commonprefix

_RLM_COMMON = 20_000
"""A word that occurs in more places is ignored, unless all words do."""
_RLM_WORD = _rlm_re.compile(r"\w+")
_RLM_SENTENCE_END = _rlm_re.compile(r"[.!?]\s+|\n+")
_RLM_NAME_SHARE = 8
"""A name in more than one of so many passages of a text is of little help to find one."""
_RLM_SENTENCE_SHARE = 0.25
"""The share for which the words of the best sentence of a passage count once more."""
_RLM_MOST = 100_000_000
"""The maximum size in bytes of a folder that is read."""
_RLM_QUESTION = """%s

Question: %s
Answer in a few words, not a sentence. If the text does not tell, answer: unknown"""


def find_passages(text, words, count=5, chars=300):
    """Return the parts of a text that share the most and the rarest words with `words`, the best first.

    Words in one sentence count for more than in two.

    Args:
        text: The text, or several: a folder, a dict of texts by name, or a list. A passage of one of several
            begins with its name, or its index. Files that are not text are passed over.
        words: A question, or words that the passage may have. Case and endings of words do not matter.
        count: The maximum number of passages.
        chars: The length of a passage in characters. One sentence or line may be up to twice as long. A passage
            of a table is one row below the names of the columns, one of records `name: value` is one record.
    """
    return _rlm_found(text, words, count, chars, _rlm_with_header)[0]


def _rlm_found(text, words, count, chars, written):
    """Return what `find_passages` does, each as `written`, and the rare names among the words, in lower case."""
    if not isinstance(words, str):
        raise TypeError("find_passages takes a str as words, not %s." % type(words).__name__)
    _rlm_refuse_name(text, "find_passages")
    text, begins, names = _rlm_one_text(text, 2 * chars)
    folded = text.replace("\u0130", "i").lower()  # the only character whose lower case is longer
    places, found = _rlm_places(text, folded, set(_rlm_re.findall(r"\w+", words.lower())), len(text) / chars)
    chosen, headers, known = [], [], {}
    for _, length, first in _rlm_windows(text, places, chars):
        last = first + length
        if len(chosen) == count:
            break
        if all(last <= start or end <= first for start, end in chosen + headers):
            unit = _rlm_best_unit(text, places, known, first, last, chars)
            begin, stop = unit or _rlm_without_rows(
                text, last, _rlm_sentences(text, first, last, chars), chars, known
            )
            if all(stop <= start or end <= begin for start, end in chosen + headers):
                if not _rlm_is_header(text, begin, chars):
                    chosen.append((begin, stop))
                elif len(headers) < count:
                    headers.append((begin, stop))
    chosen = (chosen + headers)[:count]  # each row comes with its header
    passages = [
        names[_rlm_bisect.bisect(begins, end - 1)] + written(text, start, end, chars, known)
        for start, end in chosen
    ]
    return passages, found


def _rlm_one_text(given, gap):
    """Return a text, or several as one; where each but the first begins; and what stands before their passages.

    The gap between two is so long that no passage holds parts of both.
    """
    if isinstance(given, str):
        return given, [], [""]
    texts, names = [], []
    for name, text in _rlm_texts(given, "find_passages"):
        texts.append(text + "\n" * gap)
        names.append("%s: " % name)
    begins = list(_rlm_itertools.accumulate(map(len, texts[:-1])))
    return "".join(texts), begins, names or [""]


def _rlm_refuse_name(text, function):
    """Refuse the name of a variable in the place of its text."""
    if isinstance(text, str) and text.isidentifier() and isinstance(globals().get(text), (str, list, _RlmMapping)):
        raise ValueError(
            "%s takes a text, not the name of a variable: leave out the quotes of %r." % (function, text)
        )


def _rlm_texts(given, function):
    """Yield the names and texts of a folder, dict or list; files that are no text are passed over."""
    if isinstance(given, (list, tuple)):
        given = {"[%d]" % number: text for number, text in enumerate(given)}
    if not isinstance(given, _RlmMapping):
        raise TypeError(
            "%s takes a str as text, a folder, or a dict or list of str, not %s."
            % (function, type(given).__name__)
        )
    if sum(getattr(given, "sizes", {}).values()) > _RLM_MOST:
        raise ValueError(
            "%s reads at most %d MB. Give it some of the files: {name: files[name] for name in "
            "files.glob('**/*.md')}, or use files.grep." % (function, _RLM_MOST // 1_000_000)
        )
    for name in given:
        try:
            text = given[name]
        except (OSError, ValueError):  # of a folder: no text, or it cannot be read
            continue
        if not isinstance(text, str):
            raise TypeError("%s takes a str as text, not %s at %r." % (function, type(text).__name__, name))
        yield name, text


def query_passages(text, prompt, at_least=1, count=8, chars=350):
    """Ask a model a question about the passages of a text that match it best; return the answer.

    The model reads the best passage; or the three best, or all, if it takes these to have each rare name of the
    question that any of them has. While it answers "unknown", it reads more.

    Args:
        text: The text, as in `find_passages`.
        prompt: The question, which also ranks the passages.
        at_least: The number of passages that the first call reads. A list needs all that match.
        count: The maximum number of passages.
        chars: The length of a passage in characters.

    Raises:
        SubCallError: If the model could not be asked.
    """
    best, names = _rlm_found(text, prompt, count, chars, _rlm_with_names)
    reply, held = "unknown", [names.intersection(_RLM_WORD.findall(passage.lower())) for passage in best]
    for number in dict.fromkeys(max(at_least, each) for each in (1, 3, count)):
        if number < len(best) and set().union(*held[:number]) != set().union(*held):
            continue
        if best:
            reply = llm_query(_RLM_QUESTION % ("\n\n".join(reversed(best[:number])), prompt))
        if number >= len(best) or "unknown" not in reply.lower():
            break
    return reply


def _rlm_places(text, folded, words, passages):
    """Return the places of the words that are not common, in order: start, end, word, weight; and the rare names.

    A word with another ending is such a place too, for half the weight at most. A word that the text writes only
    with a capital is a name: the rarer it is, the more it counts for, up to twice.
    """
    rare, common, names = [], [], set()
    rarest = _rlm_math.log(1 + passages)
    for word in words:
        found = list(_rlm_itertools.islice(_rlm_forms(folded, word), _RLM_COMMON))
        exact = sum(whole for _, _, whole in found)
        weights = _rlm_math.log(1 + passages / max(1, len(found))) / 2, _rlm_math.log(1 + passages / max(1, exact))
        if exact and all(text[start].isupper() for start, _, whole in found if whole):
            weights = tuple(weight * (1 + (weight / rarest) ** 2) for weight in weights)
            if len(found) < passages / _RLM_NAME_SHARE:
                names.add(word)
        here = [(start, end, word, weights[whole]) for start, end, whole in found]
        (rare if len(found) < _RLM_COMMON else common).extend(here)
    return sorted(rare or common), names


def _rlm_windows(text, places, chars):
    """Return the windows of a passage's length from each place on, the best first: score below 0, length, start.

    The score is the weights of the words, and a share of those that the best sentence has.
    """
    starts, found = [place[0] for place in places], []
    sentences = _rlm_sentence_numbers(text, places, chars)
    for number, start in enumerate(starts):
        inside = range(number, _rlm_bisect.bisect_left(starts, start + chars))
        weights, by_sentence = {}, {}
        for each in inside:
            _, _, word, weight = places[each]
            for part in weights, by_sentence.setdefault(sentences[each], {}):
                part[word] = max(weight, part.get(word, 0))
        best = max(sum(part.values()) for part in by_sentence.values())
        score = sum(weights.values()) + _RLM_SENTENCE_SHARE * best
        found.append((-round(score, 6), places[inside[-1]][1] - start, start))
    return sorted(found)


def _rlm_best_unit(text, places, known, first, last, chars):
    """Return the range of the row or record that has the most of the words from `first` to `last`; None if none.

    `known` keeps what was found for each line, and where tables begin.
    """
    weights = {}
    begin, end = (_rlm_bisect.bisect_left(places, (place,)) for place in (first, last))
    for start, _, word, weight in places[begin:end]:
        line = _rlm_line(text, start, chars)
        if line not in known:
            known[line] = _rlm_unit(text, line, chars, known)
        words = weights.setdefault(known[line], {})
        words[word] = max(weight, words.get(word, 0))
    return max(weights, key=lambda unit: (sum(weights[unit].values()), unit is not None), default=None)


def _rlm_sentence_numbers(text, places, chars):
    """Return for each place the number of its sentence; places further apart than a passage are in two."""
    numbers, last = [], 0
    for start, end, *_ in places:
        new = start - last > chars or bool(_RLM_SENTENCE_END.search(text, last, start))
        numbers.append((numbers[-1] if numbers else 0) + new)
        last = max(last, end)
    return numbers


def _rlm_forms(folded, word):
    """Yield start and end of the words that share 3 of 4 letters with `word`, and whether they are the same."""
    stem = word[: max(4, len(word) * 3 // 4)]
    at = folded.find(stem)
    while at >= 0:
        end = at + len(stem)
        if not at or not (folded[at - 1].isalnum() or folded[at - 1] == "_"):
            end = _RLM_WORD.match(folded, at, at + 2 * len(word)).end()
            same = len(_rlm_commonprefix([folded[at:end], word]))
            if 4 * same >= 3 * max(end - at, len(word)):
                yield at, end, end - at == same == len(word)
        at = folded.find(stem, end)


def _rlm_sentences(text, first, last, chars):
    """Return where a passage around the words from `first` to `last` begins and ends: whole sentences or lines."""
    low, high = max(0, first - 2 * chars), min(len(text), last + 2 * chars)
    cuts = [low + cut.end() for cut in _RLM_SENTENCE_END.finditer(text[low:high])]
    before = [cut for cut in ([0] if not low else []) + cuts if cut <= first]
    after = [cut for cut in cuts + ([high] if high == len(text) else []) if cut >= last]
    if not before or not after or after[0] - before[-1] > 2 * chars:
        return _rlm_whole_words(text, max(0, (first + last - chars) // 2), chars)
    while len(after) > 1 and after[1] - before[-1] <= chars:
        after.pop(0)
    while len(before) > 1 and after[0] - before[-2] <= chars:
        before.pop()
    return before[-1], after[0]


def _rlm_without_rows(text, last, passage, chars, known):
    """Return the range of a passage, whose last word ends at `last`, without the rows of a table below that."""
    begin, end = passage
    line = _rlm_line(text, max(begin, end - 2), chars)
    while line is not None and line[0] >= last and _rlm_unit(text, line, chars, known) is not None:
        end = line[0]
        line = _rlm_line(text, max(begin, end - 1), chars)
    return begin, end


def _rlm_whole_words(text, start, chars):
    """Return a range of a text without the pieces of words at its ends."""
    end = min(len(text), start + chars)
    first, last = start, end
    if start and not text[start - 1].isspace():
        first = start + text[start:end].find(" ") + 1
    if end < len(text) and not text[end].isspace():
        last = start + text[start:end].rfind(" ")
    return (first, last) if first < last else (start, end)
