"""Prepares values for spans: shortens long ones and redacts secrets."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import dspy
from pydantic import BaseModel

from rlm_dspy.inputs import Text, describe
from rlm_dspy.json_values import fields_of_model
from rlm_dspy.redaction import hidden, secrets_of, secrets_of_environment, without_credentials, without_cut
from rlm_dspy.text import sendable, with_note
from rlm_dspy.tracing.span_spec import TEXT_CHARS, Preview, storable

if TYPE_CHECKING:
    from collections.abc import Iterable


_ITEMS = 30
_DEPTH = 6
_BUDGET_CHARS = 30_000
_BEYOND_BUDGET_CHARS = 200
_ONCE = ((600_000, 1_500),)
"""Character budgets of a trace, and of a turn's text in it: for texts that appear nowhere else."""
_AGAIN = ((300_000, 200), (200_000, 600), (100_000, 2_000))
"""The same for all other texts; the artifact holds them whole."""


class Payloads:
    """Formats values for spans and tables.

    Args:
        secrets: The secrets to redact.
        one_trace: Whether all values belong to one trace: the larger the trace, the shorter its repeated texts.
    """

    def __init__(self, secrets: Secrets, *, one_trace: bool = False) -> None:
        self._secrets = secrets
        self._one_trace = one_trace
        self._written = 0

    def text(self, text: str, chars: int) -> str:
        """Return a text without secrets; of a longer one the head and tail, with a note on what is left out."""
        text, chars = storable(text), self._at_most(chars)
        self._written += min(len(text), chars)
        if len(text) <= chars:
            return self._secrets.hide(text)
        head, tail = chars - chars // 3, chars // 3
        margin = self._secrets.longest  # a truncated secret is not recognized: look beyond the cut
        begin = self._secrets.hide_in_part(text[: head + 2 * margin])[:head]
        end = self._secrets.hide_in_part(text[len(text) - tail - 2 * margin :])[-tail:]
        return with_note(begin, len(text) - head - tail, end)

    def error(self, text: str, chars: int) -> str:
        """Return an error's text without secrets and without what looks like a key: a server may quote its own."""
        return self.text(without_credentials(text), chars)

    def _at_most(self, chars: int) -> int:
        """Return the maximum length of a text, given the one that holds in a small trace."""
        if not self._one_trace:
            return chars
        once = chars >= TEXT_CHARS
        return next(
            (min(chars, most) for size, most in (_ONCE if once else _AGAIN) if self._written > size), chars
        )

    def has_secret(self, content: bytes) -> bool:
        """Return whether a file holds a known secret."""
        return bool(self._secrets.found_in(content))

    def hidden(self, text: str) -> str:
        """Return the whole text without secrets."""
        return self._secrets.hide(sendable(text))

    def value(self, value: Any, chars: int = 4_000) -> Any:
        """Return a value as JSON-like data.

        Args:
            value: Any value.
            chars: The maximum length of each text in it.
        """
        left = _BUDGET_CHARS

        def write(value: Any, depth: int) -> Any:
            nonlocal left
            match _plain(value):
                case str() as text:
                    if text.startswith("data:") and ";base64," in text[:200]:  # MLflow stores it as a file
                        return text
                    written = self.text(text, chars if left > 0 else _BEYOND_BUDGET_CHARS)
                    left -= len(written)
                    return written
                case Mapping() as mapping if depth:
                    more = {"...": f"{len(mapping) - _ITEMS:,} more"} if len(mapping) > _ITEMS else {}
                    shown = islice(mapping.items(), _ITEMS)
                    return {storable(str(name)): write(item, depth - 1) for name, item in shown} | more
                case list() | tuple() | set() | frozenset() as items if depth:
                    rest = [f"... {len(items) - _ITEMS:,} more"] if len(items) > _ITEMS else []
                    return [write(item, depth - 1) for item in islice(items, _ITEMS)] + rest
                case other:
                    return self.variable("value", other)

        return write(value, _DEPTH)

    def variable(self, name: str, value: Any) -> Any:
        """Return an input as the model sees it: short values whole, long ones as size and ends."""
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str) and len(value) <= _BEYOND_BUDGET_CHARS:
            return self._secrets.hide(storable(value))
        described = describe(name, value)
        text = self.text(f"{described.type}, {described.value}", 1_000)
        return Preview(text) if isinstance(value, str | Text) else text


def _plain(value: Any) -> Any:
    """Return a record's fields as a dict, a signature as text, anything else unchanged."""
    if isinstance(value, type) and issubclass(value, dspy.Signature):
        text: str = getattr(value, "signature")  # noqa: B009  # defined by DSPy's metaclass
        return text
    if isinstance(value, BaseModel):
        return fields_of_model(value)
    return dict(value.items()) if isinstance(value, dspy.Example | dspy.Prediction) else value


class Secrets:
    """Holds known secrets, and redacts them in texts."""

    def __init__(self) -> None:
        self._values: set[str] = set()
        self._lock = threading.Lock()
        self._environment: int | None = None

    @property
    def longest(self) -> int:
        """The length of the longest one."""
        return max(map(len, self._values), default=0)

    def learn(self, values: Iterable[str]) -> None:
        """Redact these values from now on."""
        with self._lock:
            self._values = self._values | set(values)  # a new set: other threads iterate over the old one

    def learn_environment(self) -> None:
        """Redact the values of environment variables with names like `OPENAI_API_KEY`."""
        present = hash(tuple(os.environ.items()))
        if present != self._environment:
            self._environment = present
            self.learn(secrets_of_environment())

    def learn_lm(self, lm: dspy.BaseLM) -> None:
        """Redact the keys and headers of an LM."""
        self.learn(secrets_of(lm))

    def hide(self, text: str) -> str:
        """Return the text with each secret replaced by `***`."""
        return hidden(text, self._values)

    def hide_in_part(self, text: str) -> str:
        """Return a part of a text with secrets replaced by `***`, also those truncated at its ends."""
        return without_cut(self.hide(text), self._values)

    def found_in(self, content: bytes) -> list[str]:
        """Return the secrets that occur in `content`."""
        return [value for value in self._values if value.encode() in content]
