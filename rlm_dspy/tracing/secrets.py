"""The secrets that are known so far, and texts without them."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from rlm_dspy.redaction import hidden, secrets_of, secrets_of_environment, without_cut

if TYPE_CHECKING:
    from collections.abc import Iterable


class Secrets:
    """Values that are known to be secret, and text without them."""

    def __init__(self) -> None:
        self._values: set[str] = set()
        self._lock = threading.Lock()
        self._environment: int | None = None

    @property
    def longest(self) -> int:
        """Characters of the longest of them."""
        return max(map(len, self._values), default=0)

    def learn(self, values: Iterable[str]) -> None:
        """Hide these from now on."""
        with self._lock:
            self._values = self._values | set(values)  # anew: other threads go through the old ones

    def learn_environment(self) -> None:
        """Hide the values of environment variables whose name tells, like `OPENAI_API_KEY`."""
        present = hash(tuple(os.environ.items()))
        if present != self._environment:
            self._environment = present
            self.learn(secrets_of_environment())

    def learn_lm(self, lm: Any) -> None:
        """Hide the keys and headers that an LM was given."""
        self.learn(secrets_of(lm))

    def hide(self, text: str) -> str:
        """Return the text with `***` in place of each of them."""
        return hidden(text, self._values)

    def hide_in_part(self, text: str) -> str:
        """Return a part of a text with `***` in place of each of them, and of those that its ends cut through."""
        return without_cut(self.hide(text), self._values)

    def found_in(self, content: bytes) -> list[str]:
        """Return those that occur in `content`."""
        return [value for value in self._values if value.encode() in content]
