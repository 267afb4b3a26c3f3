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
_RLM_KEPT = 64
"""One of so many rows is kept for the rows below, by where it begins."""
_RLM_NEAR = 8
"""How many lines are looked at for two rows beside a row."""
_RLM_PARAGRAPH = _rlm_re.compile(r"(?:[^.!?]*[.!?]+\s+(?=\w)){3}")
"""Begins a line of four sentences or more."""
_RLM_DRAWN = _rlm_re.compile(r"[^\w\n]*|\s*\\\w+\s*")
"""A line without words, such as the one under the names of columns; of LaTeX, a command."""
_RLM_RULED = _rlm_re.compile(r"[-=\\─━═]")
"""What a line without words has that is drawn under the names of columns; a bracket of code is none."""
_RLM_SURE_MARKS = tuple(map(_rlm_re.compile, (r"(?<!\|)[|│](?!\|)", r"\|\||!!", r"\t", r"(?<!\\)&", r"</t[hd]>")))
_RLM_BETWEEN_CELLS = (
    *_RLM_SURE_MARKS,
    *map(_rlm_re.compile, (";", r",(?! )", ", ?", r"(?<=\S) {2,}(?=\S)", r" (?:[-/\u2013\u2014]|->) ")),
)
"""What stands between the cells of a row, one for each kind of table. The sure ones seldom stand in cells."""
_RLM_BESIDE_CELLS = _rlm_re.compile(
    r"^ *(?:\|\|?|!|│)|[|│]\s*$|\\\\\s*$|</?(?:table|thead|tbody|tr)[^>]*>|<t[hd][^>]*>"
    r"|</t[hd]>(?=\s*(?:</tr>|$))"
)
"""The marks at the ends of a row, and those of HTML before a cell."""
_RLM_QUOTED = _rlm_re.compile(r'(?<![^,; \t])"(?:[^"]|"")*"(?=\s*(?:[,;\t]|$))')
"""A cell in quotes, in which a delimiter is none."""
_RLM_HEAD_CHARS = 4_000
"""What of a text is looked at to see whether it consists of rows."""
_RLM_ROW_CHARS = 2_000
"""The maximum length of a row there."""
_RLM_ROWS_SHARE = 0.8
_RLM_FORM_MARK = _rlm_re.compile(r"\d+|[^\w\s]")
_RLM_FORM = 4
"""How many numbers and marks tell the form of a line."""
_RLM_FORM_CHARS = 80
"""The maximum length of what they stand in."""
_RLM_NAME_CHARS = 40
"""The maximum length of the name of a column."""
_RLM_HEADING = _rlm_re.compile(r"#{1,6} [^\n]*\n[ \t\r]*\n(?=[^\n])")
_RLM_HEADING_ABOVE = _rlm_re.compile(r"(?m)^#{1,6} [^\n]*\n[ \t\r]*\n\Z")
"""A heading of Markdown with the empty line below it: the title of a record."""
_RLM_INDENT = _rlm_re.compile(r"[ \t]*")
_RLM_KEY = _rlm_re.compile(r"[\s\-*+\"'<{\[]*([^\W\d_][\w ./()%#-]{0,39}?)[\"'*_]*\s*[:=>]\s*\S")
"""How a line of a record begins: with the name of a field."""


def consists_of_rows(text):
    """Return whether the beginning of a text is rows of a table, lines of one form, or records, but for its title.

    The host asks this about inputs.
    """
    head = text[:_RLM_HEAD_CHARS] if len(text) <= _RLM_HEAD_CHARS else text[:_RLM_HEAD_CHARS].rpartition("\n")[0]
    at = rows = others = 0
    known = {}
    while at < len(head):
        line = _rlm_line(head, at, _RLM_ROW_CHARS // 2)
        if line is None:
            return False
        at = line[1] + 1
        if _rlm_is_drawn(head, line):
            continue
        if _rlm_unit(head, line, _RLM_ROW_CHARS // 2, known) is None:
            others += line[1] - line[0]
        else:
            rows += line[1] - line[0]
    return rows > _RLM_ROWS_SHARE * (rows + others)


def consists_of_entries(text):
    """Return whether most lines at the beginning of a text are entries of a log: all begin with the same marks.

    What they say may be anything. The host asks this about inputs that do not consist of rows.
    """
    lines = text[:_RLM_HEAD_CHARS].split("\n")[: -1 if len(text) > _RLM_HEAD_CHARS else None]
    forms = _RlmCounter()
    for line in lines:
        forms[_rlm_form(line)] += len(line)
    return max((length for form, length in forms.items() if form), default=0) > _RLM_ROWS_SHARE * forms.total()


def _rlm_form(line):
    """Return the numbers and marks with which an entry of a log begins, all numbers as one; of prose, nothing."""
    marks = _RLM_FORM_MARK.findall(line[:_RLM_FORM_CHARS])[:_RLM_FORM]
    form = tuple("0" if mark.isdigit() else mark for mark in marks)
    return form if len(form) == _RLM_FORM and "0" in form else ()


def _rlm_unit(text, line, chars, known):
    """Return the range of the record that has a line, or of the line if it is a row or names columns, or None.

    `known` keeps where tables begin, as in `_rlm_header`.
    """
    if line is None:
        return None
    heading = _RLM_HEADING.match(text, line[0])
    record = _rlm_record(text, _rlm_line(text, heading.end(), chars) if heading else line, chars)
    if record is not None:
        above = _RLM_HEADING_ABOVE.search(text[max(0, record[0] - chars) : record[0]])
        return record[0] - (len(above[0]) if above else 0), record[1]
    alike = sum(_rlm_alike_beside(text, line, step, chars) for step in (-1, 1)) > 1
    if (alike or _rlm_header(text, line[0], chars, known)) and not _RLM_PARAGRAPH.match(text, *line):
        return line
    return line if _rlm_is_header(text, line[0], chars) else None


def _rlm_alike_beside(text, line, step, chars):
    """Return how many of the two lines above, or below, are like a line; lines without words do not count."""
    lines = _rlm_islice(_rlm_beside(text, line, step, chars), _RLM_NEAR)
    rows = (each for each in lines if not _rlm_is_drawn(text, each))
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
    block = None if line is None else _rlm_block(text, line, chars)
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
    """Return the mark between the cells of a row: a sure one, or that of which it has the most."""
    row = _rlm_unquoted(row).strip(" ")
    is_sure = "\t" in row.strip() or " | " in row or _RLM_BESIDE_CELLS.search(row)
    marks = [mark for mark in _RLM_SURE_MARKS if is_sure and mark.search(row)] or _RLM_BETWEEN_CELLS
    return max(marks, key=lambda mark: len(mark.findall(row)))


def _rlm_parts(mark, row):
    """Return the cells of a row, which a mark parts outside of quotes."""
    if '"' not in row:
        return mark.split(row)
    found = [each.span() for each in mark.finditer(_rlm_unquoted(row))]
    return [row[end:begin] for (_, end), (begin, _) in zip([(0, 0), *found], [*found, (len(row), len(row))])]


def _rlm_unquoted(row):
    """Return a row of the same length without what stands in quotes."""
    return _RLM_QUOTED.sub(lambda quoted: "_" * len(quoted[0]), row) if '"' in row else row


def _rlm_header(text, start, chars, known, most=None):
    """Return the names of the columns of the table whose row begins here; nothing if there are none above it.

    They are the first row, if a line is drawn under it, or if the row has a number where that has none. Of the
    lines above, the nearest `most` are looked at, or all. `known` keeps what stands above some rows: other rows of
    the same table are not walked up again.
    """
    line = _rlm_line(text, start, chars)
    row = "" if line is None else text[slice(*line)]
    mark = _rlm_mark(row)
    count, first, second, drawn, ruled = len(_rlm_parts(mark, row)), line, line, False, False
    passed = []
    if count == 1:
        return ""
    for above in _rlm_islice(_rlm_beside(text, line, -1, chars), most):
        if _rlm_is_drawn(text, above):
            drawn = drawn or _RLM_RULED.search(text, *above) is not None
        elif len(_rlm_parts(mark, text[slice(*above)])) == count:
            first, second, drawn, ruled = above, first, False, drawn
            place = mark, count, above[0]
            if place in known:
                first, second, ruled = known[place]
                break
            passed += [place] if above[0] % _RLM_KEPT == 0 else []
        else:
            break
    known.update((place, (first, second, ruled)) for place in passed if place[2] != first[0])
    names, below, cells = (_rlm_cells_of(mark, text[slice(*each)]) for each in (first, second, line))
    is_header = first != line and (ruled or _rlm_are_names(names, cells, below))
    return text[slice(*first)] + "\n" if is_header and max(map(len, names)) <= _RLM_NAME_CHARS else ""


def _rlm_cells_of(mark, row):
    """Return the cells of a row, which `mark` parts, without the marks at its ends."""
    return [cell.strip() for cell in _rlm_parts(mark, _RLM_BESIDE_CELLS.sub("", row))]


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
    return row is not None and _rlm_header(text, row[0], chars, {}, 4) == text[slice(*line)] + "\n"


def _rlm_caption(text, start, chars, known):
    """Return the lines above a table without names of columns of which a row begins here; nothing for others.

    They may say what the columns are. The cells of the row must have no names themselves.
    """
    row = _rlm_line(text, start, chars)
    line = "" if row is None else text[slice(*row)]
    if not _rlm_mark(line).search(line) or _RLM_KEY.match(line) or _rlm_unit(text, row, chars, known) != row:
        return ""
    end, passed = row[0], []
    for above in _rlm_beside(text, row, -1, chars):
        place = "caption", above[0]
        if place in known:
            end = known[place]
            break
        is_row = _rlm_are_alike(line, text[slice(*above)]) or _rlm_is_drawn(text, above)
        if not is_row and _rlm_unit(text, above, chars, known) is None:
            break
        end = above[0]
        passed += [place] if above[0] % _RLM_KEPT == 0 else []
    known.update(dict.fromkeys(passed, end))
    lines = text[max(0, end - chars) : end].rstrip().rpartition("\n\n")[2].lstrip("\n").split("\n")
    return "\n".join([*lines[end > chars and len(lines) > 1 :], ""]) if lines[0] else ""


def _rlm_with_header(text, start, end, chars, known):
    """Return a passage; that of a row with the names of its columns, or else the lines above the table."""
    passage = text[start:end].strip()
    if "\n" in passage:
        return passage
    return (_rlm_header(text, start, chars, known) or _rlm_caption(text, start, chars, known)) + passage


def _rlm_with_names(text, start, end, chars, known):
    """Return a passage as a model reads it best: a row as lines `name: value`, by the names of the columns."""
    passage = _rlm_with_header(text, start, end, chars, known)
    header, _, row = passage.partition("\n")
    mark = _rlm_mark(row)
    names, cells = (_rlm_cells_of(mark, line) for line in (header, row))
    if len(names) != len(cells) or len(names) == 1 or "\n" in text[start:end].strip():
        return passage
    return "\n".join(": ".join(filter(None, pair)) for pair in zip(names, cells))
