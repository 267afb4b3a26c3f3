"""Finds the row of a table, or the record of a few lines, in which a word stands.

`find_passages` returns it alone: what stands beside it would be read for it. Not imported: the source runs in any
interpreter, in the same namespace as `passages.py`.
"""

import re as _rlm_re
from collections import Counter as _RlmCounter
from itertools import islice as _rlm_islice
from itertools import takewhile as _rlm_takewhile

_RLM_DIGIT = _rlm_re.compile(r"\d")
_RLM_TOKEN = _rlm_re.compile(r"\d+|[^\W\d_]+|\t| {2,}|[^\w ]")
_RLM_ALIKE = 0.5
"""The share of tokens that the rows of one table have in common with the row beside."""
_RLM_PARAGRAPH = _rlm_re.compile(r"(?:[^.!?]*[.!?]+\s+(?=\w)){3}")
"""Begins a line of four sentences or more."""
_RLM_DRAWN = _rlm_re.compile(r"[^\w\n]*|\s*\\\w+\s*")
"""A line without words, such as the one under the names of columns; of LaTeX, a command."""
_RLM_BETWEEN_CELLS = tuple(
    map(
        _rlm_re.compile,
        (
            r"(?<!\|)\|(?!\|)",
            r"\|\||!!",
            r"\t",
            ";",
            r",(?! )",
            ", ?",
            "&",
            r"(?<=\S) {2,}(?=\S)",
            r"</t[hd]>",
            r" (?:[-/\u2013\u2014]|->) ",
        ),
    )
)
"""What stands between the cells of a row, one for each kind of table."""
_RLM_BESIDE_CELLS = _rlm_re.compile(
    r"^ *(?:\|\|?|!)|\| *$|\\\\ *$|</?(?:table|thead|tbody|tr)[^>]*>|<t[hd][^>]*>|</t[hd]>(?=\s*(?:</tr>|$))"
)
"""The marks at the ends of a row, and those of HTML before a cell."""
_RLM_HEAD_CHARS = 4_000
"""What of a text is looked at to see whether it consists of rows."""
_RLM_ROW_CHARS = 2_000
"""The maximum length of a row there."""
_RLM_ROWS_SHARE = 0.8
_RLM_NAME_CHARS = 40
"""The maximum length of the name of a column."""
_RLM_INDENT = _rlm_re.compile(r"[ \t]*")
_RLM_KEY = _rlm_re.compile(r"[\s\-*+\"'<{\[]*([^\W\d_][\w ./()%#-]{0,39}?)[\"'*_]*\s*[:=>]\s*\S")
"""How a line of a record begins: with the name of a field."""


def consists_of_rows(text):
    """Return whether the beginning of a text is rows of a table, lines of one form, or records, but for its title.

    The host asks this about inputs.
    """
    head = text[:_RLM_HEAD_CHARS] if len(text) <= _RLM_HEAD_CHARS else text[:_RLM_HEAD_CHARS].rpartition("\n")[0]
    at = rows = others = 0
    while at < len(head):
        line = _rlm_line(head, at, _RLM_ROW_CHARS // 2)
        if line is None:
            return False
        if _rlm_unit(head, line, _RLM_ROW_CHARS // 2) is not None:
            rows += line[1] - line[0]
        elif not _rlm_is_drawn(head, line):
            others += line[1] - line[0]
        at = line[1] + 1
    return rows > _RLM_ROWS_SHARE * (rows + others)


def _rlm_unit(text, line, chars):
    """Return the range of the record that has a line, or of the line if it is a row or names columns, or None."""
    if line is None:
        return None
    record = _rlm_record(text, line, chars)
    if record is not None:
        return record
    alike = sum(_rlm_alike_beside(text, line, step, chars) for step in (-1, 1)) > 1
    if (alike or _rlm_header(text, line[0], chars)) and not _RLM_PARAGRAPH.match(text, *line):
        return line
    return line if _rlm_is_header(text, line[0], chars) else None


def _rlm_alike_beside(text, line, step, chars):
    """Return how many of the two lines above, or below, are like a line; lines without words do not count."""
    rows = (each for each in _rlm_beside(text, line, step, chars) if not _rlm_is_drawn(text, each))
    near = _rlm_islice(rows, 2)
    return len(list(_rlm_takewhile(lambda row: _rlm_are_alike(text[slice(*line)], text[slice(*row)]), near)))


def _rlm_line(text, at, chars):
    """Return where the line of a place begins and ends; None if it is longer than twice a passage."""
    most = 2 * chars
    begin, end = text.rfind("\n", max(0, at - most), at) + 1, text.find("\n", at, at + most)
    end = len(text) if end < 0 and at + most >= len(text) else end
    return None if end < 0 or end - begin > most else (begin, end)


def _rlm_beside(text, line, step, chars):
    """Yield the lines above (`step` is -1) or below (1) up to an empty one, the nearest first."""
    while line is not None and (line[0] if step < 0 else line[1] < len(text)):
        line = _rlm_line(text, line[0] - 1 if step < 0 else line[1] + 1, chars)
        if line is None or not text[slice(*line)].strip():
            return
        yield line


def _rlm_is_drawn(text, line):
    return _RLM_DRAWN.fullmatch(text, *line) is not None


def _rlm_are_alike(line, other):
    """Return whether two lines have half of their words and marks in common; all numbers are the same."""
    one, two = (
        _RlmCounter("0" if token.isdigit() else token[:2] for token in _RLM_TOKEN.findall(each))
        for each in (line, other)
    )
    return (one & two).total() >= _RLM_ALIKE * max(one.total(), two.total(), 3)


def _rlm_record(text, line, chars):
    """Return the range of a record: a block of lines `name: value`, each name once, as are above or below it."""
    block = _rlm_block(text, line, chars)
    if block is None:
        return None
    names = _rlm_names(text[slice(*block)])
    if len(names) < 2 or len(names) > len(set(names)) or 2 * len(names) < text.count("\n", *block) + 1:
        return None
    begin, end = block
    for near in text[end : end + 2 * chars], text[max(0, begin - 2 * chars) : begin]:
        if 2 * len(set(names).intersection(_rlm_names(near))) >= len(names):
            return block
    return None


def _rlm_names(lines):
    """Return the names of the fields with which lines begin."""
    return [found[1].lower() for found in map(_RLM_KEY.match, lines.split("\n")) if found]


def _rlm_block(text, line, chars):
    """Return the range of the lines around a line, up to an empty one or one that is less indented.

    The latter begins the block. None if that is longer than twice a passage.
    """
    below = next(_rlm_beside(text, line, 1, chars), None)
    is_first = below is not None and _rlm_indent(text, below) > _rlm_indent(text, line)
    indent = _rlm_indent(text, below if is_first else line)
    begin, end = line
    for each in () if is_first else _rlm_beside(text, line, -1, chars):
        if _rlm_indent(text, each) > indent or end - begin > 2 * chars:
            break
        begin = each[0]
        if _rlm_indent(text, each) < indent:
            break
    for each in _rlm_beside(text, line, 1, chars):
        if _rlm_indent(text, each) < indent or end - begin > 2 * chars:
            break
        end = each[1]
    return None if end - begin > 2 * chars else (begin, end)


def _rlm_indent(text, line):
    return _RLM_INDENT.match(text, *line).end() - line[0]


def _rlm_mark(row):
    """Return the mark between the cells of a row: that of which it has the most."""
    return max(_RLM_BETWEEN_CELLS, key=lambda mark: len(mark.findall(row)))


def _rlm_header(text, start, chars, most=None):
    """Return the names of the columns of the table whose row begins here; nothing if there are none above it.

    They are the first row, if a line is drawn under it, or if the row has a number where that has none. Of the
    lines above, the nearest `most` are looked at, or all.
    """
    line = _rlm_line(text, start, chars)
    row = "" if line is None else text[slice(*line)]
    mark = _rlm_mark(row)
    cells, first, drawn, ruled = _rlm_cells_of(mark, row), line, False, False
    if len(cells) == 1:
        return ""
    second = first
    for above in _rlm_islice(_rlm_beside(text, line, -1, chars), most):
        if _rlm_is_drawn(text, above):
            drawn = True
        elif len(_rlm_cells_of(mark, text[slice(*above)])) == len(cells):
            first, second, drawn, ruled = above, first, False, drawn
        else:
            break
    names, below = (_rlm_cells_of(mark, text[slice(*each)]) for each in (first, second))
    is_header = first != line and (ruled or _rlm_are_names(names, cells, below))
    return text[slice(*first)] + "\n" if is_header and max(map(len, names)) <= _RLM_NAME_CHARS else ""


def _rlm_cells_of(mark, row):
    """Return the cells of a row, which `mark` parts."""
    return [cell.strip() for cell in mark.split(_RLM_BESIDE_CELLS.sub("", row))]


def _rlm_are_names(names, *rows):
    """Return whether the first row of a table names the columns: unlike the first of `rows` it has no numbers.

    And none of its cells stands below it.
    """
    numbers = any(map(_RLM_DIGIT.search, rows[0])) and not any(map(_RLM_DIGIT.search, names))
    return numbers and not any(name == cell != "" for row in rows for name, cell in zip(names, row))


def _rlm_is_header(text, start, chars):
    """Return whether the line that begins here names the columns of the rows below."""
    line = _rlm_line(text, start, chars)
    rows = () if line is None else _rlm_beside(text, line, 1, chars)
    row = next((each for each in rows if not _rlm_is_drawn(text, each)), None)
    return row is not None and _rlm_header(text, row[0], chars, 4) == text[slice(*line)] + "\n"


def _rlm_caption(text, start, chars):
    """Return the lines above a table without names of columns of which a row begins here; nothing for others.

    They may say what the columns are. The cells of the row must have no names themselves.
    """
    row = _rlm_line(text, start, chars)
    line = "" if row is None else text[slice(*row)]
    if not _rlm_mark(line).search(line) or _RLM_KEY.match(line) or _rlm_unit(text, row, chars) != row:
        return ""
    end = row[0]
    for above in _rlm_beside(text, row, -1, chars):
        is_row = _rlm_are_alike(line, text[slice(*above)]) or _rlm_is_drawn(text, above)
        if not is_row and _rlm_unit(text, above, chars) is None:
            break
        end = above[0]
    lines = text[max(0, end - chars) : end].rstrip().rpartition("\n\n")[2].lstrip("\n").split("\n")
    return "\n".join(lines[end - chars > 0 and len(lines) > 1 :] + [""]) if lines[0] else ""


def _rlm_with_header(text, start, end, chars):
    """Return a passage; that of a row with the names of its columns, or else the lines above the table."""
    passage = text[start:end].strip()
    if "\n" in passage:
        return passage
    return (_rlm_header(text, start, chars) or _rlm_caption(text, start, chars)) + passage


def _rlm_with_names(text, start, end, chars):
    """Return a passage as a model reads it best: a row as lines `name: value`, by the names of the columns."""
    passage = _rlm_with_header(text, start, end, chars)
    header, _, row = passage.partition("\n")
    mark = _rlm_mark(row)
    names, cells = (_rlm_cells_of(mark, line) for line in (header, row))
    if len(names) != len(cells) or len(names) == 1 or "\n" in text[start:end].strip():
        return passage
    return "\n".join(": ".join(filter(None, pair)) for pair in zip(names, cells))
