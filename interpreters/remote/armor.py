"""Carries bytes over text streams: each piece is compressed, and becomes a line of base64.

Lines of the near end begin with `>`, those of the far end with `<`. Other lines, such as an
echo or the greeting of a shell, are ignored. At the far end this file runs first, as part of the command. It
imports the standard library only.
"""

from __future__ import annotations

import base64
import os
import threading
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NEAR, FAR = b">", b"<"
PIECE = 256 << 10
"""The maximum bytes of a piece, before it becomes a line."""

_MOST_LINE = 2 * PIECE
_FASTEST = 1


def line_of(piece: bytes, mark: bytes) -> bytes:
    """Return the line that carries a piece."""
    return mark + base64.b64encode(zlib.compress(piece, _FASTEST)) + b"\n"


class Lines:
    """Finds the pieces in text that arrives in parts of any size.

    Args:
        mark: The first character of the other end's lines.
    """

    def __init__(self, mark: bytes) -> None:
        self._mark = mark
        self._rest = b""

    def pieces(self, text: bytes) -> Iterator[bytes]:
        """Yield the pieces that are complete with more text.

        Raises:
            ValueError: If a line is broken.
        """
        *lines, self._rest = (self._rest + text).split(b"\n")
        if len(self._rest) > _MOST_LINE:
            raise ValueError("the other side sends a line that is too long")
        for line in lines:
            if line.startswith(self._mark):
                yield self._piece(line.rstrip(b"\r")[1:])

    @staticmethod
    def _piece(line: bytes) -> bytes:
        unpack = zlib.decompressobj()
        try:
            piece = unpack.decompress(base64.b64decode(line, validate=True), PIECE)
        except (ValueError, zlib.error) as error:
            raise ValueError(f"the other side sends a broken line: {error}") from None
        if not unpack.eof:
            raise ValueError("the other side sends a line that is not whole, or a piece that is too large")
        return piece


def write(fd: int, data: bytes) -> None:
    """Write all of it."""
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def install() -> None:
    """At the far end: make the text streams of descriptors 0 and 1 carry bytes for the program that runs next."""
    text_in, text_out = os.dup(0), os.dup(1)
    (bytes_in, decoded), (encoded, bytes_out) = os.pipe(), os.pipe()
    for ours, theirs in (bytes_in, 0), (bytes_out, 1):
        os.dup2(ours, theirs)
        os.close(ours)
    lines = Lines(NEAR)

    def decode(text: bytes) -> None:
        for piece in lines.pieces(text):
            write(decoded, piece)

    _pump(text_in, decode, decoded)
    _pump(encoded, lambda piece: write(text_out, line_of(piece, FAR)), text_out)


def _pump(source: int, take: Callable[[bytes], None], sink: int) -> None:
    """Pass on what is read until reading ends or fails; then close both sides."""

    def work() -> None:
        try:
            while read := os.read(source, PIECE):
                take(read)
        finally:
            os.close(source)
            os.close(sink)

    threading.Thread(target=work, daemon=True).start()
