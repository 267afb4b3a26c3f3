"""Escapes, shortens and formats text for people and models, and writes whole files."""

from __future__ import annotations

import contextlib
import difflib
import errno
import logging
import operator
import os
import re
import reprlib
import secrets
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls other than tab and newline: they start terminal commands
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\u206a-\u206f"  # change the direction of text
    "\u2028\u2029\ufff9-\ufffb\U000e0000-\U000e007f]"  # other line ends, and invisible annotations and tags
)


def printable(text: str) -> str:
    """Escape characters that could control a terminal or disguise a text."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def print_to_stderr(line: str) -> None:
    """Print a line to standard error."""
    print(line, file=sys.stderr)  # noqa: T201 (this is what it is for)


def logger(name: str = "dspy.rlm_dspy") -> logging.Logger:
    """Return a child of DSPy's logger, which shows INFO, for messages that quote models and data."""
    found = logging.getLogger(name)
    found.addFilter(print_safely)
    return found


def print_safely(record: logging.LogRecord) -> bool:
    """Make the message of a log record `printable`: a logging filter that drops no record."""
    record.msg, record.args = printable(record.getMessage()), None
    return True


def counted(number: int, noun: str) -> str:
    """Return `1 turn`, `2 turns`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def seconds(value: float) -> str:
    """Return `0.4 s`, `12 s`, `3 min 20 s` or `2 h 5 min`."""
    if value < 10:  # noqa: PLR2004  # one decimal is worth reading
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes >= 60:  # noqa: PLR2004  # an hour
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def price(value: float | None) -> str:
    """Format USD, with five decimals below a cent; `unknown` for None. Only 0 is shown as $0.00."""
    if value is None:
        return "unknown"
    if 0 < value < 0.00001:  # noqa: PLR2004  # would be $0.00000
        return "< $0.00001"
    return f"${value:.2f}" if value >= 0.01 or value == 0 else f"${value:.5f}"  # noqa: PLR2004  # a cent


def share(value: float) -> str:
    """Format a share as percent; only 0 and 1 are shown as 0 % and 100 %."""
    if 0 < value < 0.001:  # noqa: PLR2004  # would be 0.0 %
        return "< 0.1 %"
    if 0.999 < value < 1:  # noqa: PLR2004  # would be 100.0 %
        return "> 99.9 %"
    percent = value * 100
    return f"{percent:.1f} %" if 0 < percent < 10 or 99 < percent < 100 else f"{percent:.0f} %"  # noqa: PLR2004


def unknown_argument(owner: str, name: str, known: Iterable[str]) -> TypeError:
    """Return the error for an argument that a class does not have; it names the closest one, else all."""
    close = difflib.get_close_matches(name, known, n=1)
    fix = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}."
    return TypeError(f"{owner} has no argument {name!r}; {fix}")


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Return the rows of a table as lines whose columns are aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


_NOTE_CHARS = 60  # room for the note between head and tail


def sendable(text: str) -> str:
    """Replace lone surrogates by `?`: requests and files cannot contain them."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode("utf-8")
    return text


def all_sendable(value: Any) -> Any:
    """Return JSON-like data with every text in it `sendable`; the same object if nothing changes."""
    if isinstance(value, str):
        return sendable(value)
    if isinstance(value, dict):
        parts = {all_sendable(key): all_sendable(item) for key, item in value.items()}
        same = all(a is b and x is y for (a, x), (b, y) in zip(parts.items(), value.items(), strict=False))
        return value if same and len(parts) == len(value) else parts
    if type(value) in (list, tuple, set, frozenset):
        items = [all_sendable(item) for item in value]
        return value if all(map(operator.is_, items, value)) else type(value)(items)
    return value


def beginning(text: str, chars: int = 60) -> str:
    """Return `text`, or its first `chars` characters and `...` if that is not longer."""
    return text if len(text) < chars + len("...") else f"{text[:chars]}..."


def one_line(text: str, chars: int) -> str:
    """Return the `beginning` of a text without line breaks and with single spaces."""
    return beginning(" ".join(text[: chars * 4].split()), chars)


def clip(text: str, max_chars: int) -> str:
    """Return `text`, or its head and tail with a note of how much was left out if that is shorter.

    Args:
        text: Any text.
        max_chars: Characters of `text` to keep; the note is not counted.
    """
    if len(text) <= max_chars:
        return text
    head = max_chars - max_chars // 3
    tail = max_chars - head
    clipped = with_note(text[:head], len(text) - head - tail, text[len(text) - tail :])
    return min(text, clipped, key=len)


def with_note(head: str, left_out: int, tail: str) -> str:
    """Return the two ends of a text with a note of how many characters between them are left out."""
    return f"{head}\n... [{left_out:,} characters left out] ...\n{tail}"


def shorten_to_fit(texts: list[str], chars: int) -> list[str]:
    """Cut the longest texts so that all together have about `chars` characters."""
    left = chars
    for rank, length in enumerate(sorted(map(len, texts))):
        each = max(0, left // (len(texts) - rank))
        if length > each:
            return [cut(text, each) for text in texts]
        left -= length
    return texts


def cut(text: str, chars: int) -> str:
    """Return `text` within `chars` characters, including the note that `clip` adds; for few, with an ellipsis."""
    if len(text) <= chars:
        return text
    if chars <= _NOTE_CHARS:
        return f"{text[: chars - 1]}…" if chars > 0 else ""
    return clip(text, chars - _NOTE_CHARS)


class ShortRepr(reprlib.Repr):
    """Writes a `repr` with at most 20 items of each container and `chars` characters of each text."""

    def __init__(self, chars: int) -> None:
        super().__init__()
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = 20
        self.maxstring = self.maxother = self.maxlong = chars


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path with the user's folder for `~`; that of an unknown user stays, where `Path` would raise."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def real_path(path: str | os.PathLike[str]) -> Path:
    """Return an absolute path without links.

    Raises:
        OSError: If a link leads back to itself.
    """
    found = Path(os.path.realpath(path))  # `Path.resolve` raises a RuntimeError, and none since 3.13
    if found.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return found


_DEVICES = Path("/dev")


def write_whole(text: str, path: str | os.PathLike[str]) -> None:
    """Write a UTF-8 file atomically; lone surrogates become `?`.

    The target of a symlink is written. A pipe or a device, such as `/dev/stdout`, is written directly.

    Args:
        text: The content.
        path: The file; an existing one is replaced.

    Raises:
        OSError: If the file cannot be written, or is a link that another user made in a world-writable
            folder. An existing file is unchanged then.
    """
    data, target = text.encode("utf-8", "replace"), Path(path)
    if target.exists() and (not target.is_file() or _DEVICES in target.absolute().parents):
        with target.open("wb") as stream:
            stream.write(data)
        return
    if _is_planted(target):
        raise PermissionError(f"{target} is a link that another user created; write to another path")
    target = real_path(target)
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "There is no such folder", str(Path(path).parent))
    beside = _beside(target)
    try:
        with beside.open("xb") as stream:
            if target.exists():
                beside.chmod(stat.S_IMODE(target.stat().st_mode))
            stream.write(data)
        beside.replace(target)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from error
    finally:
        beside.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Check that `write_whole` can write a file, before its content is computed and paid for.

    Raises:
        OSError: If it cannot; the error names the file.
    """
    target = Path(path)
    if target.exists() and not target.is_file():
        return
    beside = _beside(real_path(target))
    try:
        beside.touch(exist_ok=False)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")


def _is_planted(path: Path) -> bool:
    """Return whether a path is a link that another user made in a folder like `/tmp`."""
    if sys.platform == "win32" or not path.is_symlink():
        return False
    anybody_writes = path.absolute().parent.stat().st_mode & stat.S_IWOTH
    return bool(anybody_writes) and path.lstat().st_uid not in (0, os.geteuid())
