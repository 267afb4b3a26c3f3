"""Defines the mapping from names to texts that code finds in the REPL for a folder.

The standard library only: the host uses it, and its source is run in REPLs too (`repl/bootstrap.py`).
"""

import fnmatch
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping

PIECE_BYTES = 4_000_000
"""Bytes that are read at once; a longer file comes in several pieces."""
_WHOLE_BYTES = 1_000_000_000
_CACHED_CHARS = 64_000_000
_LINE_CHARS = 300

ATTACHED_FROM, ATTACHED_BYTES = 4 * PIECE_BYTES, 1_000_000_000
"""Size from which a file is attached, and bytes of all that are: they stay in memory as long as the session."""

Piece = tuple[str | None, int | str]
"""A text, and the byte where the next piece begins (-1 after the last); or None and the reason."""


class Matches(list[tuple[str, int, str]]):
    """Name, line number and line of each match of `grep`. `note` says what was left out, if anything."""

    note = ""

    def __repr__(self) -> str:
        lines = "\n".join(f"{name}:{number}: {line}" for name, number, line in self) or "(no matches)"
        return f"{lines}\n[{self.note}]" if self.note else lines


class FileMapping(Mapping[str, str]):
    """A read-only mapping from the name of each file to its text, which is read when it is asked for.

    Args:
        sizes: The bytes of each file by name, in order.
        fetch: Returns pieces of files, given the name and first byte of each; at least the first of them.
        attach: Returns a large file as one text; None to put it together from pieces.
    """

    def __init__(
        self,
        sizes: dict[str, int],
        fetch: Callable[[list[tuple[str, int]]], list[Piece]],
        attach: Callable[[str], str] | None = None,
    ) -> None:
        self.sizes = sizes
        self._fetch, self._attach = fetch, attach
        self._lock = threading.Lock()
        self._cached: OrderedDict[str, str] = OrderedDict()
        self._attached: dict[str, str] = {}
        self._attached_bytes = self._cached_chars = 0

    def __getitem__(self, name: str) -> str:
        """Return the text of a file.

        Raises:
            KeyError: If there is no such file.
            ValueError: If it is not UTF-8 text, or too large to be read whole.
            OSError: If it cannot be read.
        """
        with self._lock:
            text = self._attached.get(name) or self._cached.get(name)
            if name in self._cached:
                self._cached.move_to_end(name)
        if text is not None:
            return text
        if name not in self.sizes:
            raise KeyError(_unknown(name))
        if self.sizes[name] > _WHOLE_BYTES:
            raise ValueError(
                f"{name} has {self.sizes[name]:,} bytes, too many to be read whole; use files.lines(name) or "
                "files.grep(pattern, name)"
            )
        return self._attached_text(name) or self._kept(name, "".join(self._pieces(name)))

    def _attached_text(self, name: str) -> str:
        """Return a large file as attached memory, which lasts as long as the session.

        Empty for other files, and if the host attaches no more: it counts what all REPLs of a run have.
        """
        size = self.sizes[name]
        with self._lock:
            if self._attach is None or size < ATTACHED_FROM or self._attached_bytes + size > ATTACHED_BYTES:
                return ""
            self._attached_bytes += size
        try:
            text = self._attach(name)
        except (RuntimeError, ValueError):  # of the host; the pieces tell why, if they cannot be read either
            with self._lock:
                self._attached_bytes -= size
            return ""
        return self._attached.setdefault(name, text)

    def _kept(self, name: str, text: str) -> str:
        """Cache a text, and drop those that were not used for longest."""
        with self._lock:
            if len(text) <= _CACHED_CHARS and name not in self._cached:
                self._cached[name] = text
                self._cached_chars += len(text)
            while self._cached_chars > _CACHED_CHARS:
                self._cached_chars -= len(self._cached.popitem(last=False)[1])
        return text

    def __iter__(self) -> Iterator[str]:
        return iter(self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def __contains__(self, name: object) -> bool:
        return name in self.sizes

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"Files({len(self):,} files, {sum(self.sizes.values()):,} bytes)"

    def glob(self, pattern: str) -> list[str]:
        """Return the names that match a pattern: `*.md`, `docs/*.md`, `**/*.md`."""
        return [name for name in self.sizes if fits(name, pattern)]

    def lines(self, name: str) -> Iterator[str]:
        """Yield the lines of a file of any size, without their line ends."""
        rest = ""
        for piece in self._pieces(name):
            *lines, rest = (rest + piece).split("\n")
            yield from lines
        if rest:
            yield rest

    def grep(
        self,
        pattern: str,
        names: str | Iterable[str] = "**/*",
        *,
        ignore_case: bool = False,
        max_matches: int = 100,
        seconds: float = 120,
    ) -> Matches:
        """Search the files line by line, one match a line.

        Args:
            pattern: A regular expression.
            names: The files: a name, a pattern as for `glob`, or a list of names.
            ignore_case: Whether case is ignored.
            max_matches: Matches to return at most.
            seconds: After this time it returns what it has found.
        """
        expression = re.compile(pattern, re.MULTILINE | (re.IGNORECASE if ignore_case else 0))
        if isinstance(names, str):
            names = [names] if names in self else self.glob(names)
        found, unread, deadline = Matches(), 0, time.monotonic() + seconds
        number, current, before = 1, "", ""
        for name, text in self._all_pieces(list(names)):
            number = number + before.count("\n") if name == current else 1
            current, before = name, text or ""
            if text is None:
                unread += 1
                continue
            for line_number, line in _matching_lines(expression, text, number):
                if len(found) == max_matches:
                    found.note = f"stopped after {max_matches} matches, in {name}"
                    return found
                found.append((name, line_number, line))
            if time.monotonic() > deadline:
                found.note = f"stopped after {seconds:g} seconds, in {name}"
                return found
        if unread:
            found.note = f"{unread} files are not UTF-8 text or cannot be read"
        return found

    def _pieces(self, name: str) -> Iterator[str]:
        for _, text in self._all_pieces([name], strict=True):
            yield text or ""

    def _all_pieces(self, names: list[str], *, strict: bool = False) -> Iterator[tuple[str, str | None]]:
        """Yield the pieces of files one after the other; None for a file that is not text, unless `strict`."""
        waiting = [(name, 0) for name in reversed(names)]
        while waiting:
            for text, after in self._fetch(self._next_parts(waiting)):
                name, _ = waiting.pop()
                if text is None and strict:
                    raise ValueError(after)
                if isinstance(after, int) and after > 0:
                    waiting.append((name, after))
                yield name, text

    def _next_parts(self, waiting: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """Return the last of the parts that wait, in reverse, as many as come in one answer."""
        parts: list[tuple[str, int]] = []
        size = 0
        while len(parts) < len(waiting) and size < PIECE_BYTES:
            name, start = waiting[-1 - len(parts)]
            if name not in self.sizes:
                raise KeyError(_unknown(name))
            parts.append((name, start))
            size += self.sizes[name] - start
        return parts


def _matching_lines(expression: "re.Pattern[str]", text: str, number: int) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line with a match; a long line is cut to what is around the match."""
    at = counted = 0
    while match := expression.search(text, at):
        start = text.rfind("\n", 0, match.start()) + 1
        end = text.find("\n", match.start())
        end = len(text) if end < 0 else end
        number += text.count("\n", counted, start)
        counted = start
        first = max(start, min(match.start() - _LINE_CHARS // 3, end - _LINE_CHARS))
        yield number, text[first : min(end, first + _LINE_CHARS)]
        at = end + 1
        if at >= len(text):
            return


def _unknown(name: str) -> str:
    return f"there is no file {name!r}; files.glob(pattern) lists names"


def fits(name: str, pattern: str) -> bool:
    """Return whether a name matches a pattern in which `**` stands for any folders, none included."""
    return _fit(name.split("/"), pattern.split("/"))


def _fit(parts: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_fit(parts[at:], pattern[1:]) for at in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _fit(parts[1:], pattern[1:])
