"""Text for a terminal, or for a page."""

from __future__ import annotations

import logging
import re

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls but tab and newline: the beginnings of a terminal's commands
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\u206a-\u206f"  # what turns the direction of text round
    "\u2028\u2029\ufff9-\ufffb\U000e0000-\U000e007f]"  # other line ends, annotations and tags, which are not seen
)


def printable(text: str) -> str:
    """Return the text without the characters by which it could drive a terminal, or look other than it reads."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def logger(name: str = "dspy.rlm_dspy") -> logging.Logger:
    """Return a logger below DSPy's, whose handler makes INFO visible, for texts that models and data wrote."""
    found = logging.getLogger(name)
    found.addFilter(print_safely)
    return found


def print_safely(record: logging.LogRecord) -> bool:
    """Make the message of a log record printable; a filter that drops none."""
    record.msg, record.args = printable(record.getMessage()), None
    return True
