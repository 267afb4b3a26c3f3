"""Reading a model's reply: which part is Python to run, which is talk, and which is thinking.

Nothing a model writes is an error here. A reply without code gives empty code; the loop tells the model.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_PYTHON = {"python", "py", "python3", "py3", "repl", "ipython", "pycon", "tool_code"}
_FENCE = re.compile(r"^[ \t]{0,3}(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[\w+.-]*)[^`]*$")
_FIELD_MARK = re.compile(r"^\[\[ ## \w+ ## \]\][ \t]*$", re.MULTILINE)  # of DSPy's ChatAdapter
_OUTPUT_TITLE = re.compile(
    r"\W*(?:(?:the|expected|example|sample|program)\s+)?(?:output|result|stdout)s?\W*", re.IGNORECASE
)
_PARSE_ATTEMPTS = 20
_MAX_UNFENCED_LINES = 200
_MAX_CLOSINGS_TRIED = 50
_MAX_THOUGHTS = 20
_MAX_LINE_CHARS = 1_000

_THINKING = "think(?:ing)?|thoughts?|longcat_think|antthinking"
_THINKING_IN_TURNS = (
    rf"{_THINKING}|reason(?:ing)?|reflection|analysis|scratch_?pad|cot|chain_of_thought|plan(?:ning)?|monologue"
    r"|(?:thinking|thought|reasoning)_process|(?:inner|internal)_(?:monologue|thoughts?|thinking|reasoning)"
)


_TOKENS = {
    "[THINK]": "[/THINK]",
    "◁think▷": "◁/think▷",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|inner_prefix|>": "<|inner_suffix|>",
    "<|channel>thought": "<channel|>",
    "<unused94>": "<unused95>",
}
"""The tokens of Magistral, Kimi, Cohere, OpenThoughts, Apertus, Gemma and MedGemma around thinking."""


def _tags(names: str) -> re.Pattern[str]:
    """Return a pattern of the tags around thinking: `<name>`, and the tokens that models have for it."""
    begins, ends = ("|".join(map(re.escape, tokens)) for tokens in (_TOKENS, _TOKENS.values()))
    return re.compile(
        rf"<\s?(?P<slash>/?)\s?(?P<name>(?:\w+:)?(?:{names}))(?:\s[^<>]*)?>|(?P<begins>{begins})|(?P<ends>{ends})"
        r"|<\|channel\|>(?:analysis|(?P<final>final\b[^<\n]*))<\|message\|>|<\|think\|>|(?P<over><\|(?:end|/think)\|>)",
        re.IGNORECASE,
    )


_ENDS = {begins.lower(): ends for begins, ends in _TOKENS.items()}
_TAGS = _tags(_THINKING)
_TAGS_IN_TURNS = _tags(_THINKING_IN_TURNS)
_WRAPPERS = (
    r"(?:<\|start\|>assistant|<\|channel\|>final\b[^<\n]*<\|message\|>|<\|return\|>|<\|end\|>"
    r"|<\|(?:START|END)_(?:RESPONSE|TEXT)\|>|<\|(?:begin|end)_of_solution\|>)"
)
_WRAPPED = re.compile(rf"\A\s*(?:{_WRAPPERS}\s*)+|(?:{_WRAPPERS}\s*)+\Z")
_TITLED = re.compile(
    r"\A(?:analysis.*?assistantfinal|Here(?: is|'s) my thought process:.*?Here(?: is|'s) my response:)",
    re.IGNORECASE | re.DOTALL,
)
"""Thinking without tags: of gpt-oss on a server that drops the tokens of its channels, and of Granite."""
_QUOTE = re.compile(r"[\"']|`+")
_SENTENCE_GOES_ON = re.compile(r"[,.;:)?!]|[ \t]+[a-z(]")


@dataclass(frozen=True)
class Reply:
    """A reply that has been read.

    Attributes:
        reasoning: The words around the code.
        code: The Python of all its blocks, in order; empty if there is none.
        other_language: The language of a fence that is not Python, if that is all the reply had.
        thinking: What the model thought before it replied, if its reply holds that.
        cut: What the model is told if its reply was cut short; empty if it was not.
    """

    reasoning: str
    code: str
    other_language: str = ""
    thinking: str = ""
    cut: str = ""


class _Block(NamedTuple):
    """A fenced block: its language in lower case, its code, and the numbers of its first line and of its end."""

    language: str
    code: str
    start: int
    end: int
    is_output: bool


def read_reply(text: str | None, *, cut: bool = False) -> Reply:
    """Read a reply of any shape.

    Taken as code, outside of thinking (see `split_thinking`): fenced blocks marked as Python or as `repl` (several
    are run as one); if there are none, blocks without a mark, but for those that a line calls an output; a block
    whose fence is never closed; a JSON object with a `code` field; without any fence, what stands in DSPy's field
    `code`, else the longest end of the reply that parses as Python and does something.

    Args:
        text: The model's reply; None counts as empty.
        cut: Whether the reply ends before the model had ended it. Only blocks whose fence is closed are code then.
    """
    thinking, text = split_thinking((text or "").replace("\r\n", "\n").strip(), in_turn=True)
    return replace(_read(text.strip(), cut=cut), thinking=thinking)


def _read(text: str, *, cut: bool) -> Reply:
    if as_object := _read_object(text):
        return as_object
    lines = text.split("\n")  # splitlines would also cut strings at a form feed or U+2028
    blocks = list(_blocks(lines))
    closed = [block for block in blocks if block.end < len(lines)]
    filled = [block for block in (closed if cut else blocks) if block.code.strip()]
    code = [block.code for block in filled if block.language in _PYTHON]
    if not any(block.language in _PYTHON and block.code.strip() for block in blocks):
        unmarked = [block for block in filled if not block.language]
        code = [block.code for block in unmarked if block is unmarked[0] or not block.is_output]
    if code:
        return Reply(reasoning=_without_marks(_without_blocks(lines, blocks)), code="\n".join(code))
    if blocks or cut:
        others = (block.language for block in blocks if block.language and block.language not in _PYTHON)
        return Reply(reasoning=_without_marks(text), code="", other_language=next(others, ""))
    return _read_unfenced(text)


def _read_object(text: str) -> Reply | None:
    if not text.startswith("{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("code"), str):
        return None
    inner = _read(value["code"], cut=False)
    return Reply(reasoning=str(value.get("reasoning") or ""), code=inner.code or value["code"])


def _blocks(lines: list[str]) -> Iterator[_Block]:
    """Yield the fenced blocks. One that is never closed ends with the lines, or at the next field mark."""
    position, above = 0, ""
    while position < len(lines):
        opening = _FENCE.match(lines[position])
        if opening is None:
            above = lines[position] if lines[position].strip() else above
            position += 1
            continue
        end = _end_of_block(lines, position + 1, opening["fence"])
        code = "\n".join(lines[position + 1 : end]).strip("\n")
        yield _Block(opening["language"].lower(), code, position, end, bool(_OUTPUT_TITLE.fullmatch(above)))
        position, above = end + 1, ""


def _without_blocks(lines: list[str], blocks: list[_Block]) -> str:
    inside = {at for block in blocks for at in range(block.start, block.end + 1)}
    return "\n".join(line for at, line in enumerate(lines) if at not in inside)


def _end_of_block(lines: list[str], start: int, fence: str) -> int:
    """Return the line of the closing fence: the first, unless it stands in a string of the code.

    A block that is never closed ends at the next field mark, or with the reply.
    """
    closing = islice((at for at in range(start, len(lines)) if _closes(lines[at], fence)), _MAX_CLOSINGS_TRIED)
    first = next(closing, None)
    if first is None:
        return next((at for at in range(start, len(lines)) if _FIELD_MARK.match(lines[at])), len(lines))
    if _ends_inside_string("\n".join(lines[start:first])):
        for at in closing:
            if _parse("\n".join(lines[start:at])) is not None:
                return at
    return first


def _closes(line: str, fence: str) -> bool:
    line = line.strip()
    return len(line) >= len(fence) and set(line) == {fence[0]}


def _without_marks(text: str) -> str:
    return _FIELD_MARK.sub("", text).strip()


def _read_unfenced(text: str) -> Reply:
    if mark := re.search(r"^\[\[ ## code ## \]\][ \t]*$", text, re.MULTILINE):
        code = _FIELD_MARK.split(text[mark.end() :], maxsplit=1)[0]
        return Reply(reasoning=_without_marks(text[: mark.start()]), code=code.strip("\n").rstrip())
    lines = _without_marks(text).split("\n")
    for start in range(min(len(lines), _MAX_UNFENCED_LINES)):
        code = "\n".join(lines[start:])
        tree = _parse(code)
        if tree is not None and _does_something(tree):
            return Reply(reasoning="\n".join(lines[:start]).strip(), code=code)
        if tree is not None:
            break  # no later line does more; a reply that repeats one word would be parsed 200 times
    return Reply(reasoning="\n".join(lines), code="")


def split_thinking(text: str, *, in_turn: bool = False, fields: Collection[str] = ()) -> tuple[str, str]:
    """Return what a model thought before it replied, and the reply without it.

    Thinking stands between tags or tokens that models have for it: `<think>`, `[THINK]`, `<|channel|>analysis`.
    It goes on to the end of the text if it is never closed. If it is never opened, it begins with the text: a chat
    template has written the opening tag. A tag in Python that parses, in quotes, or in the middle of a sentence
    opens and closes nothing.

    Args:
        text: What the model wrote.
        in_turn: Whether it is the reply of a turn, in which `<reasoning>`, `<analysis>` and the like are thinking
            too. In another answer they may be what was asked for.
        fields: Tags with these names are not looked at: an answer's own fields, as `dspy.XMLAdapter` writes them.
    """
    tags = _TAGS_IN_TURNS if in_turn else _TAGS
    names = {name.lower() for name in fields}
    thoughts: list[str] = []
    while span := _first_thought(text, tags, names, begun=bool(thoughts)):
        if len(thoughts) == _MAX_THOUGHTS:  # a model that repeats itself
            span = (0, max(tag.end() for tag in tags.finditer(text)))
        before, after = text[: span[0]].rstrip(), text[span[1] :].lstrip()
        thoughts.append(_WRAPPED.sub("", tags.sub("", text[span[0] : span[1]])).strip())
        text = f"{before}\n{after}" if before else after
    return "\n".join(filter(None, thoughts)), _WRAPPED.sub("", text)


def _first_thought(
    text: str, tags: re.Pattern[str], fields: Collection[str], *, begun: bool
) -> tuple[int, int] | None:
    """Return where the first thinking begins and where it is over; None if there is none.

    Args:
        text: What the model wrote, without the thinking that was found before.
        tags: What stands around thinking.
        fields: Names of tags that are no thinking.
        begun: Whether there was thinking before.
    """
    if titled := _TITLED.match(text):
        return titled.span()
    found = [tag for tag in tags.finditer(text) if (tag["name"] or "").lower() not in fields]
    ends, shown = _ends_of(found), _Shown(text, found)
    last_end = max((tag.start() for tag in found if _closes_thought(tag)), default=-1)
    mentioned: Counter[str] = Counter()
    for tag in found:
        if tag in shown:
            continue
        kind, in_sentence, end = _kind(tag), _is_in_sentence(text, tag), ends.get(tag.start())
        if not _closes_thought(tag):
            inner = not end and tag.start() < last_end and (begun or text[: tag.start()].strip())
            if not in_sentence and inner:
                continue  # in thinking of another kind, whose opening tag is missing
            if not in_sentence:
                return tag.start(), end.end() if end else len(text)
            if end and "\n" in text[tag.end() : end.start()] and end not in shown:
                return tag.start(), end.end()
            mentioned[kind] += 1
        elif mentioned[kind]:
            mentioned[kind] -= 1
        elif not tag["over"] and not in_sentence:
            return 0, tag.end()
    return None


def _kind(tag: re.Match[str]) -> str:
    """Return what a closing tag must share with the opening one."""
    return str(_ENDS.get((tag["begins"] or "").lower()) or tag["name"] or tag["ends"] or "channel").lower()


def _closes_thought(tag: re.Match[str]) -> bool:
    return bool(tag["slash"] or tag["ends"] or tag["final"] or tag["over"])


def _ends_of(found: list[re.Match[str]]) -> dict[int, re.Match[str]]:
    """Return the tag that closes it for each opening one, by where that stands."""
    ends, nearest = {}, {}
    for tag in reversed(found):
        if _closes_thought(tag):
            nearest[_kind(tag)] = tag
        elif _kind(tag) in nearest:
            ends[tag.start()] = nearest[_kind(tag)]
    return ends


def _line_around(text: str, tag: re.Match[str]) -> tuple[str, str]:
    """Return what stands on a tag's line before and behind it, of a long line not all."""
    before = text[max(0, tag.start() - _MAX_LINE_CHARS) : tag.start()].rpartition("\n")[2]
    return before, text[tag.end() : tag.end() + _MAX_LINE_CHARS].partition("\n")[0]


def _is_in_sentence(text: str, tag: re.Match[str]) -> bool:
    """Whether a tag stands between words of its line, and a closing one in the middle of a sentence."""
    before, behind = _line_around(text, tag)
    if not tag["name"] or not before.strip() or not behind.strip():
        return False
    return not tag["slash"] or (before[-1].isspace() and bool(_SENTENCE_GOES_ON.match(behind)))


def _is_quoted(text: str, tag: re.Match[str]) -> bool:
    before, behind = _line_around(text, tag)
    quote = _QUOTE.match(behind)
    return quote is not None and before.endswith(quote[0]) and not before.endswith("`" + quote[0])


class _Shown:
    """The tags that a text shows: in quotes, in a string of Python, or in a block that closes what it opens."""

    def __init__(self, text: str, tags: list[re.Match[str]]) -> None:
        self._text = text
        self._tags = tags
        self._at = [tag.start() for tag in tags]
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._unread = self._blocks()

    def __contains__(self, tag: re.Match[str]) -> bool:
        while (not self._ends or self._ends[-1] <= tag.start()) and (block := next(self._unread, None)):
            self._starts.append(block[0])
            self._ends.append(block[1])
        nearest = bisect_right(self._starts, tag.start()) - 1
        if nearest >= 0 and tag.start() < self._ends[nearest]:
            return True
        before, behind = _line_around(self._text, tag)
        tree = _parse(f"{before}?{behind}".strip())  # a question mark is Python in strings and comments only
        return _is_quoted(self._text, tag) or (tree is not None and bool(tree.body))

    def _blocks(self) -> Iterator[tuple[int, int]]:
        lines = self._text.split("\n")
        starts = [0, *accumulate(len(line) + 1 for line in lines)]
        for block in _blocks(lines):
            start, end = starts[block.start + 1], starts[block.end]
            inside = self._tags[bisect_left(self._at, start) : bisect_left(self._at, end)]
            if inside and (self._is_whole(block, inside) or _parse(block.code) is not None):
                yield start, end

    def _is_whole(self, block: _Block, tags: list[re.Match[str]]) -> bool:
        """Whether a block that is no Python closes what it opens."""
        opened: Counter[str] = Counter()
        for tag in tags:
            if not _is_quoted(self._text, tag):
                opened[_kind(tag)] += -1 if _closes_thought(tag) else 1
        return block.language not in _PYTHON and not any(opened.values())


def tree_of(code: str) -> ast.Module:
    """Return the tree of code; parse again if CPython 3.11 mixed up two threads that parse at once (gh-106905).

    Raises:
        SyntaxError: If it is no Python.
        ValueError: If it holds what no Python can, e.g. a null character.
    """
    for _ in range(_PARSE_ATTEMPTS - 1):
        with contextlib.suppress(SystemError):
            return ast.parse(code)
    return ast.parse(code)


def _parse(code: str) -> ast.Module | None:
    try:
        return tree_of(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _ends_inside_string(code: str) -> bool:
    try:
        tree_of(code)
    except SyntaxError as error:
        return error.msg.startswith("unterminated triple-quoted")
    except (ValueError, RecursionError, MemoryError):
        pass
    return False


def _does_something(tree: ast.Module) -> bool:
    """Whether text that was not marked as code is code: it calls, binds or imports something."""
    acts = (ast.Call, ast.Assign, ast.AugAssign, ast.Import, ast.ImportFrom, ast.FunctionDef, ast.For)
    return any(isinstance(node, acts) for node in ast.walk(tree))
