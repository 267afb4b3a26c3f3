"""Decides how long the messages of a run may be, from the limits and the model's context window."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

from rlm_dspy.budget.lm_info import context_window

if TYPE_CHECKING:
    import dspy

    from rlm_dspy.budget.ledger import Ledger
    from rlm_dspy.limits import Limits

_CHARS_PER_TOKEN = 3
_FULL = 0.8
"""The part of the window that messages may fill; the reply needs room too."""
_SHRINK = 0.6
"""Messages that were refused without a number are made so much shorter."""
PART = 4
"""One output fills at most one part in so many of the room, as does the account of older turns."""
_LEAST_OUTPUT_CHARS = 500


class Conversation(Protocol):
    """The part of a run that a `Room` needs."""

    limits: Limits
    lm: dspy.BaseLM
    ledger: Ledger

    def context_tokens(self) -> float:
        """Return about how many tokens the messages of the next turn have."""

    def message_chars(self) -> int:
        """Return how many characters the next turn's messages have."""


class Room:
    """Decides how long a run's messages may be: from its limits, the LM's facts, and context-window errors.

    Args:
        run: The run.
    """

    def __init__(self, run: Conversation) -> None:
        self._run = run
        self._most = math.inf
        self._chars_per_token: float = _CHARS_PER_TOKEN

    @property
    def window(self) -> int | None:
        """The model's context window in tokens; None if it is not known."""
        given = self._run.limits.max_context_tokens
        known = given if given is not None else context_window(self._run.lm)
        told = self._run.ledger.windows.get(getattr(self._run.lm, "model", ""))
        return min((n for n in (known, told) if n is not None), default=None)

    @property
    def chars(self) -> float:
        """The most characters that the messages of a turn may have; infinite while nothing is known."""
        window = self.window
        fits = math.inf if window is None else _FULL * window * self._chars_per_token
        return min(fits, self._most)

    @property
    def output_chars(self) -> int:
        """The most characters of one output that are shown."""
        most = self._run.limits.max_output_chars
        return most if math.isinf(self.chars) else min(most, max(_LEAST_OUTPUT_CHARS, int(self.chars / PART)))

    @property
    def is_full(self) -> bool:
        """Whether the messages of the next turn are close to the context window, as far as it is known."""
        window, tokens = self.window, self._run.context_tokens()
        if window is None or tokens <= _FULL * window:
            return False
        self._chars_per_token = min(self._chars_per_token, self._run.message_chars() / tokens)
        return True

    def refused(self) -> None:
        """Record that the messages of the next turn were too long; the error's window is recorded by now."""
        chars = self._run.message_chars()
        if chars <= self.chars:
            self._most = _SHRINK * chars
