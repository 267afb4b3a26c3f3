"""The questions of the study: of four kinds, over generated texts, each in three wordings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from families import FamilyTask, make
from wordings import WORDINGS, Wording

if TYPE_CHECKING:
    from collections.abc import Iterator

    from family_words import Split
    from starter_parts import Kind

KINDS: dict[Kind, tuple[str, ...]] = {
    "fact": ("needle", "table"),
    "count": ("count",),
    "list": ("needles",),
    "comparison": ("compare",),
}
FIRST_SEED: dict[Split, int] = {"train": 0, "dev": 1_000, "final": 2_000}
CHARS: dict[Split, int] = {"train": 20_000, "dev": 20_000, "final": 100_000}


@dataclass(frozen=True)
class Question:
    """A question of the study.

    Attributes:
        number: Its place; the same number is the same text and the same answer in every wording.
        kind: A name of `KINDS`.
        wording: How it is asked.
        task: The text, the question and the answer.
    """

    number: int
    kind: str
    wording: Wording
    task: FamilyTask


def questions(split: Split, count: int, rounds: int = 1) -> Iterator[Question]:
    """Yield `count` questions in each round, another wording of each in another round."""
    kinds = list(KINDS)
    for turn in range(rounds):
        for number in range(count):
            kind, of_kind = kinds[number % len(kinds)], number // len(kinds)
            family = KINDS[kind][of_kind % len(KINDS[kind])]
            wording = WORDINGS[(of_kind + turn) % len(WORDINGS)]
            task = make(family, FIRST_SEED[split] + number, CHARS[split], split, wording)
            yield Question(number, kind, wording, task)
