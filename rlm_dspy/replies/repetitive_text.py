"""Tells whether a reply repeats itself until it is cut, as small models do that decode greedily."""

from __future__ import annotations

import zlib

_CHARS, _RATIO = 400, 6


def is_repetitive(text: str) -> bool:
    """Whether a text of at least 400 characters is mostly repetition, by how well it compresses."""
    raw = text.encode("utf-8", "replace")
    return len(text) >= _CHARS and len(raw) >= _RATIO * len(zlib.compress(raw))
