"""Carries bytes over streams that take text only: a piece of them is a line of base64, compressed before.

Lines of the near end begin with `>`, those of the far end with `<`. Whatever else comes, as an echo or a greeting
of a shell, is passed over. At the far end this file runs before everything else, as part of the command. The
standard library only.
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
"""Bytes of a piece at most, before it is made a line."""

_MOST_LINE = 2 * PIECE
_FASTEST = 1


def line_of(piece: bytes, mark: bytes) -> bytes:
    """Return the line that carries a piece."""
    return mark + base64.b64encode(zlib.compress(piece, _FASTEST)) + b"\n"


class Lines:
    """Finds the pieces in text that arrives cut anywhere.

    Args:
        mark: What the lines of the other end begin with.
    """

    def __init__(self, mark: bytes) -> None:
        self._mark = mark
        self._rest = b""

    def pieces(self, text: bytes) -> Iterator[bytes]:
        """Yield the pieces that more text completes.

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


def put_on() -> None:
    """At the far end: let descriptors 0 and 1, which take text only, carry bytes to whatever runs next."""
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
    """Pass on what is read until that ends or fails; then close both sides."""

    def work() -> None:
        try:
            while read := os.read(source, PIECE):
                take(read)
        finally:
            os.close(source)
            os.close(sink)

    threading.Thread(target=work, daemon=True).start()
