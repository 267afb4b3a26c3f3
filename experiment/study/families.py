"""Families of generated tasks over texts of any length, with exact gold: for optimization and for accuracy.

    task = make("classify", seed=7, chars=100_000, split="held_out")
    task.is_right("41")

    needle      one fact, among others of the same person and the same fact of others, each in one of many wordings
    compare     which of two people has the higher number or the earlier date: two facts, each as in `needle`
    needles     several facts of one kind, spread over the text; the answer is a set
    table       one cell of a table that fills the text
    count       how many lines of a person carry a label that stands on the line
    classify    how many lines mean something that stands on no line: each must be read (as OOLONG asks)
    pairs       which pairs of people both wrote lines of a meaning; the answer is a set of pairs

Splits share no template and no name (`family_words.py`); seeds change everything else. The same family, seed,
length and split make the same task; a wording changes nothing but the question (`wordings.py`).
"""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from family_words import WORDS, Split, Words
from tasks import Task, normalized
from wordings import FURTHER, REWORDED, Wording

if TYPE_CHECKING:
    from collections.abc import Callable

MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October")
LEAST_CHARS = 2_000
Made = tuple[Any, ...]
"""A text, the template of the question and its fields, the answer, and its parts if it is a set."""


@dataclass(frozen=True)
class FamilyTask(Task):
    """A task that knows what it was made from, and whose answer may be a set.

    Attributes:
        family: Its family.
        split: Its split.
        seed: Its seed.
        members: The parts of an answer that is a set; empty for a single value.
    """

    family: str = ""
    split: str = ""
    seed: int = 0
    members: tuple[str, ...] = field(default=())

    def is_right(self, answer: object) -> bool:
        """Whether an answer is the gold one: for a set, all of its members in any order and nothing else."""
        if not self.members:
            return super().is_right(answer)
        return parts_of(str(answer), pairs="&" in self.answer) == {member_of(part) for part in self.members}


def parts_of(answer: str, *, pairs: bool) -> set[str]:
    """Return the members of a set that an answer writes as a list: with commas, semicolons, or one a line.

    Lines may have numbers or dots before them; the last member may have an `and`, those of pairs aside.
    """
    answer = re.sub(r"(?m)^\s*(?:\d+[.)]|[-*\u2022])\s+", "", answer)
    separators = r"[;\n]" if pairs else r"[,;\n]|\band\b"
    if pairs and ";" not in answer and "\n" not in answer:
        separators = ","
    return {member_of(part) for part in re.split(separators, answer) if normalized(part)}


def member_of(part: str) -> str:
    """Return a member as it is compared: the two of a pair in either order."""
    return " & ".join(sorted(normalized(name) for name in re.split(r"&| and ", part)))


def make(family: str, seed: int, chars: int, split: Split, wording: Wording = "template") -> FamilyTask:
    """Return one task.

    Args:
        family: A name of `FAMILIES`.
        seed: Other seeds give other names, values, places and questions.
        chars: Characters of the text, at least 2,000; it is up to two hundred longer.
        split: Which templates and names.
        wording: How the question is asked.

    Raises:
        ValueError: If there is no such family or split, or the text is too short to hold a task.
    """
    if family not in FAMILIES or split not in WORDS:
        raise ValueError(f"There is {', '.join(FAMILIES)} for {', '.join(WORDS)}, not {family!r} for {split!r}.")
    if chars < LEAST_CHARS:
        raise ValueError(f"chars must be at least {LEAST_CHARS:,}, not {chars!r}.")
    draw = Draw(WORDS[split], random.Random(f"{family}-{split}-{seed}"))
    context, template, fields, answer, *members = FAMILIES[family](draw, chars)
    question = (REWORDED[template] if wording == "reworded" else template).format(**fields)
    if wording == "further sentence":
        question += f" {FURTHER[split][seed % len(FURTHER[split])]}"
    return FamilyTask(context, question, answer, (), family, split, seed, tuple(members))


class Draw:
    """Draws names and values of a split. A name is drawn once only."""

    def __init__(self, words: Words, rng: random.Random) -> None:
        self.words = words
        self.rng = rng
        self._drawn: set[str] = set()

    def name(self) -> str:
        """Return a name that was not drawn yet."""
        words, choice = self.words, self.rng.choice
        made = choice(words.starts) + choice(words.middles) + choice(words.ends)
        while made in self._drawn:  # there are enough names of three syllables for all but large tables
            made += choice(words.middles)
        self._drawn.add(made)
        return made

    def day(self) -> str:
        """Return a date."""
        return f"{self.rng.randrange(1, 29)} {self.rng.choice(MONTHS)} {self.rng.randrange(1890, 1999)}"

    def value(self, kind: str) -> str:
        """Return a value of a kind: a number, a place or a date."""
        if kind == "number":
            return str(self.rng.randrange(10_000, 99_999))
        return self.name() if kind == "place" else self.day()

    def filler(self, chars: int) -> list[str]:
        """Return sentences that matter to nobody, of so many characters in all."""
        people, places = [self.name() for _ in range(30)], [self.name() for _ in range(30)]
        sentences, length = [], 0
        while length <= chars:
            who, who2 = self.rng.sample(people, 2)
            sentence = self.rng.choice(self.words.filler).format(
                who=who, who2=who2, place=self.rng.choice(places), n=self.rng.randrange(2, 900), day=self.day()
            )
            sentences.append(sentence)
            length += len(sentence) + 1
        return sentences

    def among(self, planted: list[str], chars: int) -> str:
        """Return a text with sentences planted at places of its own choice."""
        sentences = self.filler(chars - sum(len(sentence) + 1 for sentence in planted))
        for sentence in planted:
            sentences.insert(self.rng.randrange(len(sentences) + 1), sentence)
        return "\n".join(" ".join(sentences[at : at + 8]) for at in range(0, len(sentences), 8))


def needle(draw: Draw, chars: int) -> Made:
    """One fact; four distractors tell the same of others, and one each other thing of the same person."""
    rng, words = draw.rng, draw.words
    asked = rng.choice(words.attributes)
    who, value = draw.name(), draw.value(asked.kind)
    planted = [rng.choice(asked.told).format(who=who, value=value)]
    tellings = [(asked, draw.name()) for _ in range(4)]
    tellings += [(other, who) for other in words.attributes if other is not asked]
    planted += [rng.choice(told.told).format(who=whom, value=draw.value(told.kind)) for told, whom in tellings]
    return draw.among(planted, chars), asked.asked, {"who": who}, value


def compare(draw: Draw, chars: int) -> Made:
    """Two facts to compare; three distractors tell the same of others, and each two other things of the two."""
    rng, words = draw.rng, draw.words
    asked = rng.choice([attribute for attribute in words.attributes if attribute.compared])
    who, other, *others = [draw.name() for _ in range(5)]
    values = {who: draw.value(asked.kind), other: draw.value(asked.kind)}
    while _size(values[who]) == _size(values[other]):
        values[other] = draw.value(asked.kind)
    values |= {name: draw.value(asked.kind) for name in others}
    planted = [rng.choice(asked.told).format(who=name, value=value) for name, value in values.items()]
    tellings = [(told, name) for told in words.attributes if told is not asked for name in (who, other)]
    planted += [rng.choice(told.told).format(who=name, value=draw.value(told.kind)) for told, name in tellings]
    chosen = (min if asked.kind == "date" else max)((who, other), key=lambda name: _size(values[name]))
    return draw.among(planted, chars), str(asked.compared), {"who": who, "other": other}, chosen


def _size(value: str) -> int:
    """Return a number, or the year of a date."""
    return int(value.rsplit(maxsplit=1)[-1])


def needles(draw: Draw, chars: int) -> Made:
    """Three to six facts of one person; as many of each of three others, some about the same towns."""
    rng, words = draw.rng, draw.words
    who, others = draw.name(), [draw.name() for _ in range(3)]
    values = [draw.name() for _ in range(rng.randrange(3, 7))]
    planted = [rng.choice(words.visits).format(who=who, value=value) for value in values]
    for other in others:
        towns = [draw.name() for _ in values[1:]] + [rng.choice(values)]
        planted += [rng.choice(words.visits).format(who=other, value=town) for town in towns]
    return draw.among(planted, chars), words.visits_asked, {"who": who}, ", ".join(values), *values


def table(draw: Draw, chars: int) -> Made:
    """One cell of a table that is the whole text."""
    rng, words = draw.rng, draw.words
    lines, rows = [words.row.format(*words.columns)], []
    length = len(lines[0])
    while length <= chars:
        rows.append((draw.name(), *(str(rng.randrange(100, 99_999)) for _ in range(3))))
        lines.append(words.row.format(*rows[-1]))
        length += len(lines[-1]) + 1
    row, column = rng.choice(rows), rng.randrange(1, 4)
    fields = {"column": words.columns[column], "key": row[0]}
    return "\n".join(lines), words.table_asked, fields, row[column]


def count(draw: Draw, chars: int) -> Made:
    """Lines that name their label: how many of one person have one."""
    lines = _lines(draw, chars, draw.words.labelled)
    who, label = draw.rng.choice(lines)[1:]
    found = sum(other == who and mark == label for _, other, mark in lines)
    text = "\n".join(line for line, *_ in lines)
    return text, draw.words.count_asked, {"who": who, "label": label}, str(found)


def classify(draw: Draw, chars: int) -> Made:
    """Lines that do not name what they are about: how many are about something, or what most are about."""
    lines = _lines(draw, chars, draw.words.line)
    tally = Counter(label for *_, label in lines)
    (first, most), (_, second) = tally.most_common(2)
    labels = ", ".join(draw.words.labels)
    text = "\n".join(line for line, *_ in lines)
    if draw.rng.random() < 1 / 2 and most > second:
        return text, draw.words.most_asked, {"labels": labels}, first
    label = draw.rng.choice(list(draw.words.labels))
    return text, draw.words.number_asked, {"labels": labels, "label": label}, str(tally[label])


def pairs(draw: Draw, chars: int) -> Made:
    """Lines that do not name what they are about: which two both wrote so many of one kind."""
    shared: list[str] = []
    while not shared:  # a short text may have no kind that three people wrote
        lines = _lines(draw, chars, draw.words.line)
        shared = [kind for kind in draw.words.labels if len({who for _, who, mark in lines if mark == kind}) > 2]
    label = draw.rng.choice(shared)
    tally = Counter(who for _, who, mark in lines if mark == label)
    least = sorted(tally.values(), reverse=True)[2]  # three people reach it, and all who wrote as many
    chosen = sorted(who for who in tally if tally[who] >= least)
    members = [f"{one} & {other}" for one, other in itertools.combinations(chosen, 2)]
    fields = {"labels": ", ".join(draw.words.labels), "label": label, "least": str(least)}
    text = "\n".join(line for line, *_ in lines)
    return text, draw.words.pairs_asked, fields, "; ".join(members), *members


def _lines(draw: Draw, chars: int, template: str) -> list[tuple[str, str, str]]:
    """Return lines of so many characters in all, each with who wrote it and what it is about."""
    rng, labels = draw.rng, draw.words.labels
    people = [draw.name() for _ in range(rng.randrange(6, 12))]
    weights = [rng.random() + 1 / 5 for _ in labels]
    lines, length = [], 0
    while length <= chars:
        who, label = rng.choice(people), rng.choices(list(labels), weights)[0]
        line = template.format(day=draw.day(), who=who, label=label, text=rng.choice(labels[label]))
        lines.append((line, who, label))
        length += len(line) + 1
    return lines


FAMILIES: dict[str, Callable[[Draw, int], Made]] = {
    "needle": needle,
    "compare": compare,
    "needles": needles,
    "table": table,
    "count": count,
    "classify": classify,
    "pairs": pairs,
}
