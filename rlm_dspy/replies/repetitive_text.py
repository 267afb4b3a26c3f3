"""Finds replies that say the same until they are cut: small models decode a list without an end."""

from __future__ import annotations

import zlib

_CHARS, _RATIO = 400, 6


def goes_round(text: str) -> bool:
    """Whether a text of some length consists of repetitions."""
    raw = text.encode("utf-8", "replace")
    return len(text) >= _CHARS and len(raw) >= _RATIO * len(zlib.compress(raw))
