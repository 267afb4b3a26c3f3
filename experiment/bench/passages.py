"""Counts how often the passage that holds the answer is the best, or among three or eight, of `find_passages`.

    uv run --extra embedded python experiment/bench/passages.py

No model is asked. The questions are the facts of the half `build` of the articles, and facts over generated texts
of the splits `train` and `dev` in three wordings (`reworded` shares few words with the text). A passage holds an
answer if it has its words; by chance it may have them elsewhere.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlm_dspy.repl.in_repl import passages

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "study")]
from articles import halves  # noqa: E402  # scripts of this folder are run, not installed
from families import make  # noqa: E402
from tasks import normalized  # noqa: E402
from wordings import WORDINGS  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from family_words import Split

AMONG = (1, 3, 8)
CHARS = 350
"""The length of a passage, as `query_passages` has it."""
FIRST_SEED = 5_000
"""No seed of the study."""
SPLITS: tuple[Split, ...] = ("train", "dev")
find_passages: Callable[..., list[str]] = passages.find_passages
Question = tuple[str, str, str]
"""A text, a question on it and the answer."""


def groups(seeds: int, chars: int) -> Iterator[tuple[str, list[Question]]]:
    """Yield the questions with the name of their group."""
    text = (HERE.parent / "articles.md").read_text(encoding="utf-8")
    facts = [each for each in halves()["build"] if each["kind"] == "fact"]
    yield "articles", [(text, each["question"], str(each["answer"])) for each in facts]
    for split in SPLITS:
        for wording in WORDINGS:
            made = [make("needle", FIRST_SEED + seed, chars, split, wording) for seed in range(seeds)]
            yield f"{split}, {wording}", [(task.context, task.question, task.answer) for task in made]


def place(question: Question) -> int:
    """Return the place of the first passage with the answer, from 1 on; more than `AMONG` has if none has it."""
    text, asked, answer = question
    found = find_passages(text, asked, count=max(AMONG), chars=CHARS)
    holds = [normalized(answer) in normalized(passage) for passage in found]
    return holds.index(True) + 1 if any(holds) else max(AMONG) + 1


def main(
    seeds: Annotated[int, typer.Option(help="Generated questions of each group.")] = 50,
    chars: Annotated[int, typer.Option(help="Characters of a generated text.")] = 100_000,
) -> None:
    """Print the table."""
    print("| questions | asked |" + "".join(f" among {number} |" for number in AMONG))
    print("|---|---|" + "---|" * len(AMONG))
    for name, questions in groups(seeds, chars):
        places = [place(each) for each in questions]
        shares = [sum(each <= number for each in places) / len(places) for number in AMONG]
        print(f"| {name} | {len(places)} |" + "".join(f" {share:.0%} |" for share in shares))


if __name__ == "__main__":
    typer.run(main)
