"""Defines `find_records`, which reads the records of a text: the blocks of lines `name: value` that it repeats.

Not imported: the source runs in any interpreter, in the same namespace as `passages.py`.
"""

import re as _rlm_re
from collections import Counter as _RlmCounter
from itertools import groupby as _rlm_groupby

_RLM_FIELD = _rlm_re.compile(
    r"[ \t]*(?:[-*+][ \t]+)?[*_]{0,2}([^\W\d_][\w ./-]{0,39})[*_]{0,2}[ \t]*:[*_]{0,2}(?:[ \t]+(.*))?"
)

_RLM_RULE = _rlm_re.compile(r"\A-{3,}[ \t]*\n")
"""Ends the fields at the beginning of a Markdown file."""


class _RlmFields(dict):
    """The fields of a record, by names in any case; pickled and copied as a dict."""

    def __reduce__(self):
        """Return a dict: a saved session must not need this class."""
        return dict, (dict(self),)

    def __missing__(self, name):
        """Return the field of this name in another case.

        Raises:
            KeyError: If there is none; the message lists the fields.
        """
        for each in self:
            if isinstance(name, str) and each.lower() == name.lower():
                return self[each]
        raise KeyError("%r is no field. The fields are: %s" % (name, ", ".join(self)))


def find_records(text):
    """Return the records of a text, each as a dict of its fields.

    A record begins with two or more lines `name: value`; records share at least half of their names. Its dict has
    `title` too, the line above these, and `text`, the lines below them up to the next record. In a text without
    such blocks each line is a record, and has only `text`.

    Args:
        text: The text, or several, as in `find_passages`: `file` is then the name, or index, of a record's.
    """
    _rlm_refuse_name(text, "find_records")
    if isinstance(text, str):
        records = _rlm_blocks(text)
        return records if len(records) > 1 else _rlm_lines(text)
    texts = dict(_rlm_texts(text, "find_records"))
    records = [_RlmFields({"file": name, **each}) for name in texts for each in _rlm_blocks(texts[name])]
    return records or [_RlmFields({"file": name, **each}) for name in texts for each in _rlm_lines(texts[name])]


def _rlm_lines(text):
    """Return the lines that are not empty as records."""
    return [_RlmFields(text=line) for line in text.splitlines() if line.strip()]


def _rlm_blocks(text):
    """Return the records that begin with lines `name: value`."""
    lines = text.splitlines()
    fields = [_RLM_FIELD.fullmatch(line) for line in lines]
    blocks = []  # of each: where it begins and ends, and its names
    for is_field, numbers in _rlm_groupby(range(len(lines)), key=lambda number: fields[number] is not None):
        numbers = list(numbers)
        if is_field and len(numbers) > 1:
            blocks.append((numbers[0], numbers[-1] + 1, tuple(fields[number][1].strip() for number in numbers)))
    counted = _RlmCounter(names for *_, names in blocks)
    if not counted:
        return []
    usual = set(max(counted, key=lambda names: counted[names] * len(names)))
    blocks = [block for block in blocks if 2 * len(usual & set(block[2])) >= max(len(usual), len(set(block[2])))]
    titles = [begin - bool(begin and lines[begin - 1].strip()) for begin, *_ in blocks]
    records = []
    for (begin, end, names), title, after in zip(blocks, titles, [*titles[1:], len(lines)]):
        values = ((fields[number][2] or "").strip() for number in range(begin, end))
        record = {"title": "".join(lines[title:begin]).strip().lstrip("#=*- "), **dict(zip(names, values))}
        record["text"] = _RLM_RULE.sub("", "\n".join(lines[end:after])).strip()
        records.append(_RlmFields(record))
    return records
