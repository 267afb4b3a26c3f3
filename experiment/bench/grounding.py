"""Counts how often the places of answers are right, missing or wrong, over runs whose facts have known places.

The model is scripted: its code and its sub-calls' answers are those of ten ways to find a fact. The texts are
generated; each holds the fact at a known place, and the same name or number at others.

    python experiment/bench/grounding.py [--seeds 4]
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dspy

from rlm_dspy import RLM
from rlm_dspy.testing import ScriptedLM

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST = ["Kadri", "Piret", "Marek", "Olev", "Sirje"]
LAST = ["Vaheste", "Tammsaar", "Kuusik", "Raudsepp", "Lepik"]
WORDS = ["signal", "drift", "archive", "harbour", "ledger", "copper", "willow", "sensor", "meadow", "furnace"]


@dataclass
class Case:
    """One run.

    Attributes:
        way: How the answer is found.
        text: The input.
        turns: The code of each turn.
        answers: The places of the fact, by field: start and end; None if the answer has none.
        reply: What a sub-model answers to a prompt.
        signature: The task.
    """

    way: str
    text: str
    turns: list[str]
    answers: dict[str, tuple[int, int] | None]
    reply: Callable[[str], str] = str
    signature: str = "context, question -> answer: str"


def filler(rng: random.Random, lines: int) -> str:
    """Return lines that say nothing of the fact."""
    return "".join(f"{n}: the {rng.choice(WORDS)} of {rng.choice(WORDS)} holds.\n" for n in range(lines))


def placed(rng: random.Random, *sentences: str) -> tuple[str, list[int]]:
    """Return a text that holds these sentences, in order, and where each begins."""
    text, starts = "", []
    for sentence in sentences:
        text += filler(rng, rng.randint(50, 400))
        starts.append(len(text))
        text += sentence + "\n"
    return text + filler(rng, rng.randint(50, 400)), starts


def cases(seed: int) -> list[Case]:
    """Return one case of each way."""
    rng = random.Random(seed)
    name = f"{rng.choice(FIRST)} {rng.choice(LAST)}"
    fact = f"The firm Ovid Systems was founded in {rng.randint(1950, 2020)} by {name} of Tartu."
    other = f"Last year {name} sailed to Hiiumaa with a crew of seven."
    number = rng.randint(100, 900)
    once, (at,) = placed(rng, fact)
    twice, (_, second) = placed(rng, other, fact)
    at_fact = (at + fact.index(name), at + fact.index(name) + len(name))
    at_second = (second + fact.index(name), second + fact.index(name) + len(name))
    counted, _ = placed(rng, f"The hall seats {number} guests on Sundays.", *["A copper coin."] * 3)
    firms = [
        f"Firm {n} belongs to {a} {b} since {1900 + n}." for n, (a, b) in enumerate(zip(FIRST, LAST, strict=False))
    ]
    many, starts = placed(rng, *firms)
    owners: dict[str, tuple[int, int] | None] = {
        f"o{n}": (s + f.index("to ") + 3, s + f.index(" since"))
        for n, (s, f) in enumerate(zip(starts, firms, strict=True))
    }
    find = "print(re.findall(r'.*founded.*', context))"
    group = "m = re.search(r'founded in \\d+ by (\\w+ \\w+)', context)\n"
    pieces = "pieces = [context[i:i + 3000] for i in range(0, len(context), 3000)]\n"
    knows: Callable[[str], str] = lambda prompt: name if f"by {name}" in prompt else "none"  # noqa: E731
    return [
        Case("printed line, then typed", twice, [find, f"SUBMIT(answer={name!r})"], {"answer": at_second}),
        Case("regex in code, one place", once, [group + "SUBMIT(answer=m.group(1))"], {"answer": at_fact}),
        Case("regex in code, two places", twice, [group + "SUBMIT(answer=m.group(1))"], {"answer": at_second}),
        Case(
            "name printed alone, two places",
            twice,
            [group + "print(m.group(1))", f"SUBMIT(answer={name!r})"],
            {"answer": at_second},
        ),
        Case(
            "llm_query over pieces",
            twice,
            [
                pieces
                + "found = [r for r in llm_query_batched(['Who founded Ovid Systems?\\n\\n' + p for p in pieces])"
                " if r and r != 'none']\nSUBMIT(answer=found[0])"
            ],
            {"answer": at_second},
            knows,
        ),
        Case(
            "sub-call in other words",
            once,
            [f"SUBMIT(answer=llm_query('Who founded it?\\n' + context[{at - 200}:{at + 300}]))"],
            {"answer": at_fact},
            lambda _: "{1}, {0}".format(*name.split()),
        ),
        Case(
            "sub-call printed, then typed",
            twice,
            [
                "at = context.index('founded in')\nprint(llm_query('Who?\\n' + context[at - 900:at + 600]))",
                f"SUBMIT(answer={name!r})",
            ],
            {"answer": at_second},
            knows,
        ),
        Case("guessed", once, ["print(context[:200])", f"SUBMIT(answer={name!r})"], {"answer": None}),
        Case(
            "counted, the number stands in the text",
            counted + "A copper coin.\n" * (number - 3),
            ["print(context[-100:])", "SUBMIT(answer=context.count('A copper coin.'))"],
            {"answer": None},
            signature="context, question -> answer: int",
        ),
        Case(
            "list by regex",
            many,
            ["SUBMIT(answer=re.findall(r'belongs to (\\w+ \\w+)', context))"],
            owners,
            signature="context, question -> answer: list[str]",
        ),
    ]


def judged(case: Case) -> Counter[str]:
    """Run a case; return how many places of its values are right, none or wrong."""
    lm = ScriptedLM(
        act=[f"```python\nimport re\n{turn}\n```" for turn in case.turns],
        query=lambda messages: case.reply(messages[-1]["content"]),
    )
    with dspy.context(lm=lm):
        rlm = RLM(case.signature, max_iters=len(case.turns) + 1)
        prediction = rlm(context=case.text, question="Who founded Ovid Systems?")
    places = prediction.sources.get("answer", [])
    is_right = [
        any(truth and place.start <= truth[0] and truth[1] <= place.end for truth in case.answers.values())
        for place in places
    ]
    return Counter(right=sum(is_right), wrong=len(places) - sum(is_right), none=len(case.answers) - len(places))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=4)
    table: dict[str, Counter[str]] = {}
    for seed in range(parser.parse_args().seeds):
        for case in cases(seed):
            table.setdefault(case.way, Counter()).update(judged(case))
    print("| way | right | none | wrong |\n|---|---|---|---|")
    for way, counts in [*table.items(), ("all", sum(table.values(), Counter()))]:
        print(f"| {way} | {counts['right']} | {counts['none']} | {counts['wrong']} |", flush=True)


if __name__ == "__main__":
    main()
