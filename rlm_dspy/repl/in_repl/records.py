"""Defines `find_records`, which reads the records of a text: blocks of lines `name: value`, rows, objects of JSON.

Not imported: the source runs in any interpreter, in the same namespace as `passages.py`.
"""

import csv as _rlm_csv
import json as _rlm_json
import re as _rlm_re
from collections import Counter as _RlmCounter
from itertools import groupby as _rlm_groupby

_RLM_FIELD = _rlm_re.compile(
    r"[ \t]*(?:[-*+][ \t]+)?[*_]{0,2}([^\W\d_][\w ./()%#-]{0,39}?)[*_]{0,2}[ \t]{0,40}"
    r"(?::[*_]{0,2}(?:[ \t]+|$)|=(?!=)[ \t]*)(.*)"
)

_RLM_COLUMN = _rlm_re.compile(r"[^\W\d_][\w ./()%#-]{0,39}")
_RLM_PAIR = _rlm_re.compile(r"([^\W\d_][\w ./()%#-]{0,39}?)[ \t]{0,40}(?:=|:[ \t])[ \t]*(.*)")
_RLM_WORDS = _rlm_re.compile(r'(?:"[^"]*"|\S)+')
"""Words, each with what is quoted in it."""
_RLM_LEAST_ROWS = 3
"""The least number of lines of a table, with its columns' names."""
_RLM_CSV = {r"\t": "\t", ";": ";", r",(?! )": ",", ", ?": ","}
"""The delimiters of CSV, by their patterns in `_RLM_BETWEEN_CELLS`."""
_RLM_LINE_END = _rlm_re.compile(r"\r\n?|[\n\v\f]")
"""Not those of `str.splitlines`, which may stand within a string of JSON."""
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
    `title` too, the line above these, and `text`, the lines below them up to the next record, unless it has fields
    called so. A name that comes twice in a row has a value of several lines. In a text without such blocks, half
    of whose lines are a table (its first row names the columns) or have pairs `name=value`, each row is a record;
    so is each object of JSON and of JSON Lines. Else each line is one, and has only `text`.

    Args:
        text: The text, or several, as in `find_passages`: `file` is then the name, or index, of a record's.

    Raises:
        ValueError: If there are no records but the lines, and these are paragraphs.
    """
    _rlm_refuse_name(text, "find_records")
    given = {None: text} if isinstance(text, str) else dict(_rlm_texts(text, "find_records"))
    texts = {name: each.removeprefix("\ufeff") for name, each in given.items()}
    for read in _rlm_objects, _rlm_blocks, _rlm_rows, _rlm_pairs, _rlm_lines:
        records = [(name, each) for name in texts for each in read(texts[name])]
        if len(records) > (isinstance(text, str) and read is _rlm_blocks):
            return [each if name is None else _RlmFields({"file": name, **each}) for name, each in records]
    if not any(map(str.strip, texts.values())):
        return []
    raise ValueError(
        "find_records finds no records: the lines of this text are paragraphs. To look up what they say, use "
        "query_passages(text, question)."
    )


def _rlm_lines(text):
    """Return the lines that are not empty as records; none if they are paragraphs."""
    lines = [line for line in _RLM_LINE_END.split(text) if line.strip()]
    prose = (line[0] not in "{[<" and _RLM_PARAGRAPH.match(line) for line in lines)
    return [] if 2 * sum(map(bool, prose)) > len(lines) else [_RlmFields(text=line) for line in lines]


def _rlm_rows(text):
    """Return the rows of the tables that fill the text, each as a dict by the names of its columns."""
    lines, ruled = [], set()  # the lines with words, and which of them have a line drawn under them
    for line in _RLM_LINE_END.split(text):
        if not _RLM_DRAWN.fullmatch(line):
            lines.append(line)
        elif lines and _RLM_RULED.search(line):
            ruled.add(len(lines) - 1)
    for mark in _RLM_BETWEEN_CELLS:
        records, used, first, header = [], 0, 0, ()
        for size, table in _rlm_groupby(_rlm_cells(lines, mark), key=len):
            names, *cells = rows = list(table)
            numbers = map(_rlm_numbers_below, names, zip(*cells))
            if len(rows) >= _RLM_LEAST_ROWS and _rlm_are_columns(names) and (first in ruled or any(numbers)):
                header = names
            if size == len(header):  # others are notes, or rows that are not whole
                records += [_RlmFields(zip(header, row)) for row in rows if row != header]
                used += len(rows)
            first += len(rows)
        if used >= max(_RLM_LEAST_ROWS, len(lines) / 2):
            return records
    return []


def _rlm_objects(text):
    """Return the objects of a JSON text or of JSON Lines; their numbers are texts, as in other records."""
    if text.lstrip()[:1] not in ("[", "{"):
        return []
    found = _rlm_parsed(text)
    if found is None:
        found = [_rlm_parsed(line) for line in _RLM_LINE_END.split(text) if line.strip()]
    if isinstance(found, dict):
        lists = [value for value in found.values() if isinstance(value, list)]
        if len(lists) == 1:  # {"wells": [{...}, ...]}
            (found,) = lists
        elif all(isinstance(value, dict) for value in found.values()):
            found = [{"title": name, **value} for name, value in found.items()]
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        return []
    return [_RlmFields((name, _rlm_as_text(value)) for name, value in each.items()) for each in found]


def _rlm_parsed(text):
    """Return the value of a JSON text; None if it is none."""
    try:
        return _rlm_json.loads(text)
    except (ValueError, RecursionError):
        return None


def _rlm_as_text(value):
    return value if isinstance(value, (str, list, dict)) else _rlm_json.dumps(value)


def _rlm_pairs(text):
    """Return the lines that consist of two or more `name=value` or `name: value`, if most lines do."""
    lines = [line for line in _RLM_LINE_END.split(text) if line.strip()]
    records = [_RlmFields(pairs) for pairs in map(_rlm_pairs_of, lines) if len(pairs) > 1]
    return records if 2 * len(records) > len(lines) else []


def _rlm_pairs_of(line):
    if "=" not in line and ":" not in line:  # most lines of most texts
        return {}
    for mark in ";,|":
        found = [_RLM_PAIR.fullmatch(part.strip()) for part in line.strip().strip(mark).split(mark)]
        if len(found) > 1 and all(found):
            return {pair[1]: pair[2].strip('"') for pair in found}
    words = _RLM_WORDS.findall(line)
    found = [_RLM_PAIR.fullmatch(word) for word in words]
    return {pair[1]: pair[2].strip('"') for pair in found} if found and all(found) else {}


def _rlm_cells(lines, mark):
    """Return the cells of each line, which `mark` parts; nothing if that is no mark of these lines."""
    if 2 * sum(map(bool, map(mark.search, lines))) < len(lines):
        return []
    mark_of_csv = _RLM_CSV.get(mark.pattern)
    try:
        if mark_of_csv is not None:  # a cell between tabs may begin with a quote that is none
            read = _rlm_csv.reader(
                (line + "\n" for line in lines),
                delimiter=mark_of_csv,
                skipinitialspace=mark_of_csv != "\t",
                strict=mark_of_csv == "\t",
            )
            return [[cell.strip() for cell in row] for row in read]
    except _rlm_csv.Error:
        if mark_of_csv != "\t":
            return []
    return [_rlm_cells_of(mark, line) for line in lines]


def _rlm_are_columns(names):
    return len(names) == len(set(names)) > 1 and all(map(_RLM_COLUMN.fullmatch, names))


def _rlm_numbers_below(name, cells):
    """Return whether more than half of the filled cells have a digit, as the column's name does not."""
    cells = [cell for cell in cells if cell]
    return not _RLM_DIGIT.search(name) and 2 * sum(map(bool, map(_RLM_DIGIT.search, cells))) > len(cells)


def _rlm_blocks(text):
    """Return the records that begin with lines `name: value`."""
    lines = _RLM_LINE_END.split(text)
    fields = [_RLM_FIELD.fullmatch(line) if ":" in line or "=" in line else None for line in lines]
    blocks = []  # of each: where it begins and ends, and its names
    for is_field, numbers in _rlm_groupby(range(len(lines)), key=lambda number: fields[number] is not None):
        numbers = list(numbers)
        names = [fields[number][1] for number in numbers] if is_field else []
        for start, end in _rlm_bounds(names):
            at, last = numbers[start], lines[numbers[end - 1]]
            if not fields[numbers[end - 1]][2] and _rlm_depth(last) < _rlm_depth(lines[at]):
                end -= 1  # names the next record of YAML
            if len(set(names[start:end])) > 1:
                blocks.append((at, at + end - start, tuple(names[start:end])))
    counted = _RlmCounter(names for *_, names in blocks)
    if not counted:
        return []
    usual = set(max(counted, key=lambda names: counted[names] * len(names)))
    blocks = [block for block in blocks if 2 * len(usual & set(block[2])) >= max(len(usual), len(set(block[2])))]
    ends = {end for _, end, _ in blocks}
    titles = [begin if begin in ends else _rlm_title_at(lines, begin) for begin, *_ in blocks]
    records = []
    for (begin, end, names), title, after in zip(blocks, titles, [*titles[1:], len(lines)]):
        values = ((fields[number][2] or "").strip() for number in range(begin, end))
        heading = "".join(lines[title:begin]).strip("#=*-[]: ")
        below = _RLM_RULE.sub("", "\n".join(lines[end:after])).strip()
        records.append(_rlm_record_of(heading, zip(names, values), below))
    return records


def _rlm_title_at(lines, begin):
    """Return where the title of a record is, which is above it; where the record begins if it has none.

    An empty line may stand below a heading of Markdown. A line that is indented more is of the record before.
    """
    above = lines[max(0, begin - 2) : begin]
    if above and above[-1].strip():
        return begin - (_rlm_depth(above[-1]) <= _rlm_depth(lines[begin]))
    return begin - 2 if above and above[0].startswith("#") else begin


def _rlm_bounds(names):
    """Return where the records in a run of lines begin and end, by the names of these lines.

    A name that comes again begins a record, as YAML has no empty lines between; one that comes twice in a row is a
    field of several values.
    """
    counts, several = _RlmCounter(names), {name for name, after in zip(names, names[1:]) if name == after}
    first = next((name for name in names if counts[name] > 1 and name not in several), None)
    starts = [at for at, name in enumerate(names) if name == first] or [0]
    return zip(starts, [*starts[1:], len(names)]) if names else ()


def _rlm_depth(line):
    return len(line) - len(line.lstrip())


def _rlm_record_of(heading, pairs, below):
    """Return a record of its fields, the line above and the lines below; empty ones hide no field."""
    fields = {}
    for name, value in pairs:
        fields[name] = fields[name] + "\n" + value if name in fields else value
    names = {name.lower() for name in fields}
    record = {"title": heading, **fields} if heading or "title" not in names else fields
    if below or "text" not in names:
        record["text"] = "\n".join(filter(None, (fields.get("text"), below)))
    return _RlmFields(record)
