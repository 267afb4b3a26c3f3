"""Separates a model's thinking, such as `<think>` blocks, from its reply."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from rlm_dspy.replies.code_blocks import PYTHON, CodeBlock, code_blocks, parse

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator


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
    "&lt;think&gt;": "&lt;/think&gt;",
    "\uff1cthink\uff1e": "\uff1c/think\uff1e",
}
"""The thinking tokens of Magistral, Kimi, Cohere, OpenThoughts, Apertus, Gemma and MedGemma."""


_APRIEL = "[BEGIN FINAL RESPONSE]"
"""Ends the thinking of Apriel, which has no beginning."""


def _tags(names: str) -> re.Pattern[str]:
    """Return a pattern of the tags around thinking: `<name>`, and the tokens of models."""
    begins, ends = ("|".join(map(re.escape, tokens)) for tokens in (_TOKENS, [*_TOKENS.values(), _APRIEL]))
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
    r"|<\|(?:START|END)_(?:RESPONSE|TEXT)\|>|<\|(?:begin|end)_of_solution\|>|\[END FINAL RESPONSE\])"
)


_WRAPPED = re.compile(rf"\A\s*(?:{_WRAPPERS}\s*)+|(?:{_WRAPPERS}\s*)+\Z")


_LEAKED = re.compile(
    r"\A\s*(?:<\|im_start\|>assistant|<\|start_header_id\|>assistant<\|end_header_id\|>|<start_of_turn>model)\s*\n"
    r"|(?<=[^\s\"'`])(?:<\|(?:im_end|eot_id|eot|end_of_turn|endoftext|end_of_text)\|>|<end_of_turn>"
    r"|<\uff5cend\u2581of\u2581sentence\uff5c>)\s*\Z"
)
"""Tokens of a turn that a server left in a reply; one that is mentioned stands behind a space or a quote."""


_TITLED = re.compile(
    r"\A(?:analysis.*?assistant(?:final|(?=(?:commentary|analysis) to=))"
    r"|Here(?: is|'s) my thought process:.*?Here(?: is|'s) my response:)",
    re.IGNORECASE | re.DOTALL,
)
"""Thinking without tags: of gpt-oss on a server that drops its channel tokens, and of Granite."""


MAY_BE_THINKING = re.compile(r"[<◁\uff1c]|&lt;|\[/?THINK\]|\[BEGIN FINAL|\A(?:analysis|Here)", re.IGNORECASE)
"""Finds something in every text that `split_thinking` changes; in few others."""


_QUOTE = re.compile(r"[\"']|`+")


_SENTENCE_GOES_ON = re.compile(r"[,.;:)?!]|[ \t]+[a-z(]")


def split_thinking(text: str, *, in_turn: bool = False, fields: Collection[str] = ()) -> tuple[str, str]:
    """Split a reply into the model's thinking and the rest.

    Thinking is marked by tags or tokens: `<think>`, `[THINK]`, `<|channel|>analysis`. Unclosed thinking
    extends to the end of the text. Without an opening tag it starts with the text: a chat template wrote the tag.
    A tag in valid Python, in quotes, or in the middle of a sentence does not count.

    Args:
        text: What the model wrote.
        in_turn: Whether it is the reply of a turn, where `<reasoning>`, `<analysis>` and the like are thinking
            too. In other answers they may be requested content.
        fields: Names of tags to ignore: the answer's own fields, as in `dspy.XMLAdapter`.
    """
    tags = _TAGS_IN_TURNS if in_turn else _TAGS
    names = {name.lower() for name in fields}
    thoughts: list[str] = []
    while span := _first_thought(text, tags, names, begun=bool(thoughts)):
        if len(thoughts) == _MAX_THOUGHTS:  # a repetitive model
            span = (0, max(tag.end() for tag in tags.finditer(text)))
        before, after = text[: span[0]].rstrip(), text[span[1] :].lstrip()
        thoughts.append(_WRAPPED.sub("", tags.sub("", text[span[0] : span[1]])).strip())
        text = f"{before}\n{after}" if before else after
    return "\n".join(filter(None, thoughts)), _LEAKED.sub("", _WRAPPED.sub("", text))


class ThinkingTag(NamedTuple):
    """A tag of thinking in a line: where it stands, and whether it is a closing one."""

    start: int
    end: int
    closing: bool


def thinking_tag(line: str) -> ThinkingTag | None:
    """Return the first tag of thinking in a line of a turn's reply; None if there is none."""
    for tag in _TAGS_IN_TURNS.finditer(line):
        if not _is_in_sentence(line, tag) and not _is_quoted(line, tag):
            return ThinkingTag(tag.start(), tag.end(), _closes_thought(tag))
    return None


def _first_thought(
    text: str, tags: re.Pattern[str], fields: Collection[str], *, begun: bool
) -> tuple[int, int] | None:
    """Return start and end of the first thinking; None if there is none.

    Args:
        text: The reply, without thinking that was already found.
        tags: The tags around thinking.
        fields: Names of tags that are not thinking.
        begun: Whether thinking was found before.
    """
    if titled := _TITLED.match(text):
        return titled.span()
    found = [tag for tag in tags.finditer(text) if (tag["name"] or "").lower() not in fields]
    ends, shown = _ends_of(found), _Shown(text, found)
    last_end = next((tag.start() for tag in reversed(found) if _closes_thought(tag) and tag not in shown), -1)
    mentioned: Counter[str] = Counter()
    for tag in found:
        if tag in shown:
            continue
        kind, in_sentence, end = _kind(tag), _is_in_sentence(text, tag), ends.get(tag.start())
        if not _closes_thought(tag):
            inner = not end and tag.start() < last_end and (begun or text[: tag.start()].strip())
            if not in_sentence and inner:
                continue  # in another kind of thinking, whose opening tag is missing
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
    """Return the part that opening and closing tag must share."""
    return str(_ENDS.get((tag["begins"] or "").lower()) or tag["name"] or tag["ends"] or "channel").lower()


def _closes_thought(tag: re.Match[str]) -> bool:
    return bool(tag["slash"] or tag["ends"] or tag["final"] or tag["over"])


def _ends_of(found: list[re.Match[str]]) -> dict[int, re.Match[str]]:
    """Return the closing tag of each opening one, by position."""
    ends, nearest = {}, {}
    for tag in reversed(found):
        if _closes_thought(tag):
            nearest[_kind(tag)] = tag
        elif _kind(tag) in nearest:
            ends[tag.start()] = nearest[_kind(tag)]
    return ends


def _line_around(text: str, tag: re.Match[str]) -> tuple[str, str]:
    """Return the text before and after a tag on its line, truncated."""
    before = text[max(0, tag.start() - _MAX_LINE_CHARS) : tag.start()].rpartition("\n")[2]
    return before, text[tag.end() : tag.end() + _MAX_LINE_CHARS].partition("\n")[0]


def _is_in_sentence(text: str, tag: re.Match[str]) -> bool:
    """Whether a tag is between words of its line, or a closing one inside a sentence."""
    before, behind = _line_around(text, tag)
    if not tag["name"] or not before.strip() or not behind.strip():
        return False
    return not tag["slash"] or (before[-1].isspace() and bool(_SENTENCE_GOES_ON.match(behind)))


def _is_quoted(text: str, tag: re.Match[str]) -> bool:
    before, behind = _line_around(text, tag)
    quote = _QUOTE.match(behind)
    return quote is not None and before.endswith(quote[0]) and not before.endswith("`" + quote[0])


class _Shown:
    """Finds quoted tags: in quotes, in a Python string, or in a block that closes what it opens."""

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
        tree = parse(f"{before}?{behind}".strip())  # in Python a question mark occurs only in strings and comments
        return _is_quoted(self._text, tag) or (tree is not None and bool(tree.body))

    def _blocks(self) -> Iterator[tuple[int, int]]:
        lines = self._text.split("\n")
        starts = [0, *accumulate(len(line) + 1 for line in lines)]
        for block in code_blocks(lines):
            start, end = starts[block.start + 1], starts[block.end]
            inside = self._tags[bisect_left(self._at, start) : bisect_left(self._at, end)]
            if inside and (self._is_whole(block, inside) or parse(block.code) is not None):
                yield start, end

    def _is_whole(self, block: CodeBlock, tags: list[re.Match[str]]) -> bool:
        """Whether a non-Python block closes the tags that it opens."""
        opened: Counter[str] = Counter()
        for tag in tags:
            if not _is_quoted(self._text, tag):
                opened[_kind(tag)] += -1 if _closes_thought(tag) else 1
        return block.language not in PYTHON and not any(opened.values())
