"""Splits the reply of a turn into thinking, reasoning and code while the model writes it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, NamedTuple

from rlm_dspy.replies.code_blocks import PYTHON, closes, ends_inside_string, language_of, may_close, opening_of
from rlm_dspy.replies.reply_parser import begins_invented_turn, without_first_tokens
from rlm_dspy.replies.thinking import thinking_tag

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm_dspy.replies.thinking import ThinkingTag

Field = Literal["thinking", "reasoning", "code"]
_MAY_BE_MARK = re.compile(r"[`<◁&\uff1c]")
"""Characters that may begin a fence, a thinking tag or a tool call, anywhere in a line."""
_BYTE_ORDER_MARK = re.compile(r"\n\ufeff+")
_MAY_BEGIN_MARK = re.compile(r"\s*[~'\"\[]")
"""Characters that begin a line that may be a fence or a field mark."""
_SPEAKERS = ("User", "Human", "Observation")
_HOLDS_CODE = re.compile(r"\s*(?:<tool_call|<function|<\|python_tag|\[TOOL_CALLS|\[\[ ## code)")


class Piece(NamedTuple):
    """A part of a reply: what it belongs to, and its text."""

    field: Field
    text: str


class ReplyReader:
    """Reads a reply piece by piece, as `read_reply` reads a whole one, and returns what is certain.

    Code is the content of blocks marked as Python. A line that may be a mark is held back until it ends. A block
    without a language, a tool call and a JSON object cannot be distinguished before the reply has ended, so they
    give no pieces.
    """

    def __init__(self) -> None:
        self._line = ""
        """The current line."""
        self._said = 0
        """The number of its characters that were yielded."""
        self._mode: Literal["prose", "thinking", "code", "held", "over"] = "prose"
        self._fence = ""
        self._code = ""
        """The code of the current block."""
        self._blocks = 0
        self._newlines = ""
        """Line ends of code, held back because those before the closing fence are not code."""
        self._is_new = self._is_first = True

    def read(self, text: str) -> list[Piece]:
        """Return the pieces that are certain after the next part of the reply."""
        pieces: list[Piece] = []
        text = _BYTE_ORDER_MARK.sub("\n", text.replace("\r", ""))
        text = text if self._line else text.lstrip("\ufeff")
        if self._is_new:
            text = text.lstrip()
            self._is_new = not text
            if text.startswith("{"):  # a JSON object that holds the code
                self._mode = "over"
        *lines, rest = (self._line + text).split("\n")
        for line in lines:
            pieces += self._whole_line(line)
            self._said = 0
        self._line = rest
        pieces += self._part_of_line()
        return pieces

    def _whole_line(self, line: str) -> Iterator[Piece]:
        if self._is_first:
            line = without_first_tokens(line)
            self._is_first = not line
        if self._mode == "code":
            yield from self._line_of_code(line)
        elif self._mode == "held":
            self._mode = "prose" if closes(line, self._fence) else "held"
        elif self._mode != "over" and not self._is_first:
            yield from self._line_of_words(line)

    def _line_of_words(self, line: str) -> Iterator[Piece]:
        if (tag := thinking_tag(line)) is not None:
            yield from self._tag(line, tag)
        elif self._mode == "thinking":
            yield from self._emit(f"{line}\n")
        elif opening := opening_of(line):
            before, self._fence, language = opening
            if before.strip():
                yield from self._emit(f"{before}\n")
            self._mode = "code" if language_of(language) in PYTHON else "held"
            self._code = ""
        elif _HOLDS_CODE.match(line) or begins_invented_turn(line, behind_code=self._blocks > 0):
            yield from self._emit(_sure(line))
            self._mode = "over"
        elif not line.startswith("[[ ## "):
            yield from self._emit(f"{line}\n")

    def _emit(self, line: str) -> Iterator[Piece]:
        """Yield the rest of a line of prose or thinking."""
        text, self._said = line[self._said :], len(line)
        if text:
            yield Piece("thinking" if self._mode == "thinking" else "reasoning", text)

    def _tag(self, line: str, tag: ThinkingTag) -> Iterator[Piece]:
        """Read a line with a tag of thinking. Code before a closing one without its opening one was a draft."""
        before, behind = line[: tag.start], line[tag.end :]
        if before.strip():
            yield from self._emit(before)
        if tag.closing and self._mode != "thinking" and self._blocks:
            self._mode = "over"
            return
        self._mode, self._said = "prose" if tag.closing else "thinking", 0
        if behind.strip():
            yield from self._line_of_words(behind)

    def _line_of_code(self, line: str) -> Iterator[Piece]:
        if closes(line, self._fence) and not ends_inside_string(self._code):
            self._mode, self._newlines = "prose", ""
        else:
            yield from self._add_code(line[self._said :])
            self._newlines += "\n"

    def _add_code(self, text: str) -> Iterator[Piece]:
        if not text:
            return
        if not self._code:
            self._newlines = "\n" if self._blocks else ""
            self._blocks += 1
        said, self._newlines = self._newlines + text, ""
        self._code += said
        yield Piece("code", said)

    def _part_of_line(self) -> Iterator[Piece]:
        """Yield the part of an unfinished line that cannot become a mark."""
        if self._mode in ("prose", "thinking"):
            yield from self._emit(_sure(self._line))
        elif self._mode == "code" and not may_close(self._line, self._fence):
            yield from self._add_code(self._line[self._said :])
            self._said = len(self._line)


def _sure(line: str) -> str:
    """Return the part of a line of prose that cannot become a mark, whatever follows."""
    mark = _MAY_BE_MARK.search(line)
    sure = line[: mark.start()] if mark else line
    start = line.strip(" \t*")
    is_held = any(name.startswith(start) or start.startswith(name) for name in _SPEAKERS)
    return "" if is_held or not sure.strip() or _MAY_BEGIN_MARK.match(line) else sure
