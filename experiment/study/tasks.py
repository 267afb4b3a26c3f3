"""Generated questions over long texts, with exact gold answers: one fact among much else.

Every task is made from a seed. The two splits share no template and no name, so what is learned on `search` is
judged on `held_out`.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Literal

Split = Literal["search", "held_out"]

SYLLABLES = {
    "search": ["mar", "dun", "kel", "vor", "tes", "bri", "hal", "os", "wen", "dra", "lin", "pet"],
    "held_out": ["sol", "qua", "zen", "mir", "tov", "eck", "rud", "yal", "nim", "cor", "fas", "gut"],
}
ENDINGS = {"search": ["a", "en", "ik", "ow"], "held_out": ["o", "us", "el", "ard"]}

# The sentence that holds the answer, and the question. {who} and {what} are drawn per task; {value} is the answer.
TEMPLATES: dict[Split, list[tuple[str, str, str]]] = {
    "search": [
        (
            "The access code of the {what} vault is {value}.",
            "What is the access code of the {what} vault?",
            "code",
        ),
        (
            (
                "When the old keeper of the {what} archive went blind, the town chose {value}, who had swept "
                "its floors for eleven years, to keep it in his place."
            ),
            "Who was chosen to keep the {what} archive?",
            "person",
        ),
        ("{who} was born in {value} and never left.", "In which town was {who} born?", "place"),
        (
            (
                "After two winters of quarrels over the price of the stone, and to the surprise of everybody who "
                "had bet against it, the {what} bridge was opened on {value}."
            ),
            "On what date was the {what} bridge opened?",
            "date",
        ),
        (
            (
                'The {what} mill, which its owner likes to call "the last honest mill on the river", employs '
                "{value} people, most of them women."
            ),
            "How many people does the {what} mill employ?",
            "number",
        ),
        ("{who} drives a lorry called {value}.", "What is the name of the lorry of {who}?", "place"),
        (
            (
                "The {what} dairy is a small one. It sells {value} cheeses in a good year, "
                "and gives the whey to the pigs."
            ),
            "How many cheeses does the {what} dairy sell?",
            "number",
        ),
        (
            "There is a clinic in {what}. Its director is {value}.",
            "Who is the director of the clinic in {what}?",
            "person",
        ),
    ],
    "held_out": [
        (
            "Visitors to the {what} tower must dial {value}.",
            "Which number must be dialled at the {what} tower?",
            "code",
        ),
        ("The captain of the ferry {what} is {value}.", "Who is the captain of the ferry {what}?", "person"),
        ("{who} moved her workshop to {value}.", "Where did {who} move her workshop?", "place"),
        ("The last train to {what} ran on {value}.", "When did the last train to {what} run?", "date"),
        (
            "There are {value} seats in the {what} theatre.",
            "How many seats are there in the {what} theatre?",
            "number",
        ),
        ("The painting by {who} is entitled {value}.", "What is the title of the painting by {who}?", "place"),
        (
            "The {what} library is open to all. It lends {value} books.",
            "How many books does the {what} library lend?",
            "number",
        ),
        (
            "{what} has a fire brigade. Its chief is {value}.",
            "Who is the chief of the fire brigade of {what}?",
            "person",
        ),
    ],
}
FILLER = [
    "{who} wrote to {who2} about the {noun} near {place} and had no answer for {n} days.",
    "On {date} the {noun} was closed, and {n} people were told by post.",
    "Nobody in {place} remembered the {noun}, though {who} had paid {n} crowns for it.",
    "The {noun} cost {n} crowns, which {who} thought a fair price.",
    "It rained in {place} until {date}, and the {noun} stayed shut.",
    "{who} has {n} sheep and a {noun}; {who2} has neither.",
]
NOUNS = [
    "harbour",
    "school",
    "orchard",
    "printing house",
    "railway yard",
    "chapel",
    "market hall",
    "quarry",
    "pond",
]
MONTHS = ["January", "March", "April", "June", "July", "September", "October", "November"]


@dataclass(frozen=True)
class Task:
    """One question.

    Attributes:
        context: The text to answer from.
        question: The question.
        answer: The gold answer.
        accept: Other strings that are right as well.
    """

    context: str
    question: str
    answer: str
    accept: tuple[str, ...] = ()

    def is_right(self, answer: object) -> bool:
        """Whether an answer is the gold one, but for case, punctuation, separators and words of the question.

        "Desk 17" answers "At which desk ...?" as well as "17" does. A gold answer that consists of words of the
        question is compared whole.
        """
        said, asked = normalized(str(answer)), {*normalized(self.question).split(), "a", "an", "the"}
        golds = {normalized(gold) for gold in (self.answer, *self.accept)}
        return said in golds or _without(said, asked) in {_without(gold, asked) for gold in golds} - {""}


def _without(text: str, words: set[str]) -> str:
    return " ".join(word for word in text.split() if word not in words)


def normalized(text: str) -> str:
    """Return a string as it is compared: lower case, words and numbers, no thousands separators, 12 for 12.0."""
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text.lower().replace("\u2212", "-"))
    text = re.sub(r"(?<![\d.:])(\d+)\.0+(?![\d.:])", r"\1", text)
    return " ".join(re.findall(r"(?<![\w-])-\d+(?:[.:]\d+)*|\d+(?:[.:]\d+)*|[^\W\d_]+", text))


def one_fact_tasks(
    count: int, chars: int, *, split: Split, seed: int = 0, questions_per_context: int = 1
) -> list[Task]:
    """Return tasks whose answer stands in one place of a context of about `chars` characters.

    A second sentence of the same form tells the same of something else (a distractor).

    Args:
        count: How many tasks.
        chars: Characters of each context.
        split: Which templates and names.
        seed: Other seeds give other names, values and places.
        questions_per_context: How many tasks share a context, each with its own fact and distractor.
    """
    tasks: list[Task] = []
    while len(tasks) < count:
        rng = random.Random(f"{split}-{seed}-{len(tasks)}")
        sentences = _filler(rng, chars, split)
        numbers = range(len(tasks), min(count, len(tasks) + questions_per_context))
        asked = [_plant(rng, sentences, split, number) for number in numbers]
        context = "\n".join(" ".join(sentences[at : at + 8]) for at in range(0, len(sentences), 8))
        tasks += [Task(context, question, answer) for question, answer in asked]
    return tasks


def _plant(rng: random.Random, sentences: list[str], split: Split, number: int) -> tuple[str, str]:
    """Put a fact and its distractor among the sentences; return the question and its answer."""
    sentence, question, kind = TEMPLATES[split][number % len(TEMPLATES[split])]
    subject = {"who": _person(rng, split), "what": _name(rng, split)}
    other = {"who": _person(rng, split), "what": _name(rng, split)}
    value, decoy = _value(rng, kind, split), _value(rng, kind, split)
    for text in (sentence.format(value=value, **subject), sentence.format(value=decoy, **other)):
        sentences.insert(rng.randrange(len(sentences)), text)
    return question.format(**subject), value


def _filler(rng: random.Random, chars: int, split: Split) -> list[str]:
    people = [_person(rng, split) for _ in range(40)]
    places = [_name(rng, split) for _ in range(40)]
    sentences: list[str] = []
    length = 0
    while length < chars:
        sentence = rng.choice(FILLER).format(
            who=rng.choice(people),
            who2=rng.choice(people),
            place=rng.choice(places),
            noun=rng.choice(NOUNS),
            n=rng.randrange(2, 900),
            date=_date(rng),
        )
        sentences.append(sentence)
        length += len(sentence) + 1
    return sentences


def _name(rng: random.Random, split: Split) -> str:
    return (rng.choice(SYLLABLES[split]) + rng.choice(SYLLABLES[split]) + rng.choice(ENDINGS[split])).capitalize()


def _person(rng: random.Random, split: Split) -> str:
    return f"{_name(rng, split)} {_name(rng, split)}"


def _date(rng: random.Random) -> str:
    return f"{rng.randrange(1, 29)} {rng.choice(MONTHS)} {rng.randrange(1890, 1999)}"


def _value(rng: random.Random, kind: str, split: Split) -> str:
    makers = {
        "code": lambda: str(rng.randrange(10_000, 99_999)),
        "number": lambda: str(rng.randrange(1_000, 9_999)),
        "person": lambda: _person(rng, split),
        "place": lambda: _name(rng, split),
        "date": lambda: _date(rng),
    }
    return makers[kind]()
