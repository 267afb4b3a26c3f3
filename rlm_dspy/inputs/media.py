"""Reads the facts about an image, a sound or a file from its first bytes: type, size, and pixels."""

from __future__ import annotations

import base64
import struct
from typing import TypedDict

import dspy

MEDIA = (dspy.Image, dspy.Audio, dspy.File)
"""Types that the REPL holds as handles; a sub-call about one sends the content to the model."""
MAX_MEDIA_BYTES = 50_000_000
"""The maximum bytes of an image, a sound or a file; providers accept less in a request."""
_HEAD_BYTES = 256 * 1024
"""The bytes within which the size of an image occurs; a JPEG has it after its thumbnail."""
_MARK = 0xFF
"""The first byte of a JPEG marker."""
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""JPEG markers that are followed by height and width."""
_ALONE = {0x01, *range(0xD0, 0xDA)}
"""JPEG markers without a length."""


class MediaFacts(TypedDict):
    """The known facts about an image, a sound or a file; None if unknown, as for an address."""

    media_type: str | None
    size: int | None
    """The size in bytes."""
    width: int | None
    """In pixels, like `height`."""
    height: int | None


def media_facts(media: dspy.Image | dspy.Audio | dspy.File) -> MediaFacts:
    """Return the known facts about an image, a sound or a file."""
    media_type, encoded = _content(media)
    pixels = None
    if isinstance(media, dspy.Image):
        head = encoded[: _HEAD_BYTES // 3 * 4]
        try:
            pixels = _pixels(base64.b64decode(head))
        except (ValueError, IndexError, struct.error):  # not base64, or cut
            pixels = None
    width, height = pixels or (None, None)
    size = len(encoded) * 3 // 4 - encoded[-2:].count("=") if encoded else None
    return MediaFacts(media_type=media_type or None, size=size, width=width, height=height)


def check_media_size(media: dspy.Image | dspy.Audio | dspy.File) -> None:
    """Check that it does not exceed a request or the memory.

    Raises:
        ValueError: If it is larger than `MAX_MEDIA_BYTES`.
    """
    size = len(_content(media)[1]) * 3 // 4
    if size > MAX_MEDIA_BYTES:
        raise ValueError(
            f"the {type(media).__name__} has {size:,} bytes, and at most {MAX_MEDIA_BYTES:,} can be sent to a "
            "model. Make it smaller, or pass its address."
        )


def _content(media: dspy.Image | dspy.Audio | dspy.File) -> tuple[str, str]:
    """Return the media type, and the content in base64; both are empty if it is an address."""
    if isinstance(media, dspy.Audio):
        return f"audio/{media.audio_format}", media.data
    data = media.url if isinstance(media, dspy.Image) else media.file_data or ""
    head, _, encoded = data.partition(";base64,")
    return (head.removeprefix("data:"), encoded) if encoded else ("", "")


def _pixels(head: bytes) -> tuple[int, int] | None:
    """Return width and height of an image from its first bytes."""
    if head.startswith(b"\x89PNG"):
        return struct.unpack(">II", head[16:24])
    if head.startswith(b"GIF8"):
        return struct.unpack("<HH", head[6:10])
    if head.startswith(b"BM"):
        width, height = struct.unpack("<ii", head[18:26])
        return width, abs(height)  # negative if the rows run from top to bottom
    if head[8:12] == b"WEBP":
        return _webp_pixels(head)
    return _jpeg_pixels(head) if head.startswith(b"\xff\xd8") else None


def _webp_pixels(head: bytes) -> tuple[int, int] | None:
    if head[12:16] == b"VP8X":
        width, upper, height, highest = struct.unpack("<HBHB", head[24:30])
        return (upper << 16 | width) + 1, (highest << 16 | height) + 1
    if head[12:16] == b"VP8L":
        (bits,) = struct.unpack("<I", head[21:25])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack("<HH", head[26:30])
    return width & 0x3FFF, height & 0x3FFF


def _jpeg_pixels(head: bytes) -> tuple[int, int] | None:
    place = 2
    while head[place] == _MARK:
        marker = head[place + 1]
        if marker == _MARK:  # filled up
            place += 1
        elif marker in _FRAMES:
            height, width = struct.unpack(">HH", head[place + 5 : place + 9])
            return width, height
        else:
            length = 0 if marker in _ALONE else struct.unpack(">H", head[place + 2 : place + 4])[0]
            place += 2 + length
    return None
