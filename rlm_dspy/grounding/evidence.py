"""Keeps the texts that the sub-calls of a run received, and what they answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlm_dspy.coverage.text_match import strings_in
from rlm_dspy.inputs import Text
from rlm_dspy.json_values import jsonable

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_CHARS = 8_000_000
"""Characters of all sub-calls of a run that are kept; later ones leave the places of their answers open."""
_MAX_LEAVES = 200


@dataclass(frozen=True)
class Asked:
    """A sub-call.

    Attributes:
        texts: The texts that it received; none if it received pictures or other objects too.
        values: The texts and numbers of its answer, as text.
    """

    texts: tuple[str, ...]
    values: tuple[str, ...]


class Evidence:
    """What the sub-calls of a run received and answered."""

    def __init__(self) -> None:
        self._asked: dict[int, Asked] = {}
        self._left = _MAX_CHARS

    @property
    def asked(self) -> list[Asked] | None:
        """The sub-calls that were answered; None if there were too many to keep."""
        return None if self._left < 0 else list(self._asked.values())

    def keep(self, number: int, inputs: Mapping[str, object], answer: object) -> None:
        """Keep a sub-call that was answered.

        Args:
            number: Its number in the run.
            inputs: Its inputs by field.
            answer: The value of its answer.
        """
        if number in self._asked or self._left < 0:
            return
        texts = tuple(strings_in(dict(inputs))) if all(map(_is_text, inputs.values())) else ()
        self._left -= sum(map(len, texts))
        self._asked[number] = Asked(texts, tuple(leaves(answer)))


def _is_text(value: object) -> bool:
    """Whether a value is nothing but text and numbers; a prompt with pictures has other parts."""
    if isinstance(value, dict):
        return all(map(_is_text, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_text, value))
    parts = getattr(value, "parts", ())
    return isinstance(value, str | int | float | Text | None) and all(isinstance(part, str) for part in parts)


def leaves(value: object) -> Iterator[str]:
    """Yield the texts and numbers of a value, at any depth, as text; at most 200."""
    plain, found = [value if isinstance(value, str) else jsonable(value)], 0
    while plain and found < _MAX_LEAVES:
        each = plain.pop()
        if isinstance(each, Mapping):
            plain += reversed(list(each.values()))
        elif isinstance(each, list | tuple):
            plain += reversed(each)
        elif isinstance(each, str | int | float) and not isinstance(each, bool):
            found += 1
            yield str(each).strip()
