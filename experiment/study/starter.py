"""Writes the policy that gets a small local model started: a few whole runs, over short made-up inputs.

    uv run python experiment/study/starter.py
    uv run --extra embedded python experiment/study/optimize.py candidates  # is it better than the shipped one?

A person wrote the programs of these runs, as the paper works: the model says what has to be looked up, for each
thing code finds the passages and a sub-call reads them, and code makes the answer of the replies. They are run for
real over the inputs below, with scripted replies, and kept only if they submit the right answer, after it was
printed. Nothing in a program looks at what kind of question it has: no list of words, no forms of answers. The
model is shown all runs over its kind of input, so that the prompt begins alike for every question, and is read
once. The texts and questions share nothing with `families.py`, `tasks.py` or the articles.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import dspy
import pandas as pd
import typer

from rlm_dspy import RLM, Files, Limits, Table
from rlm_dspy.optimize import save_policy
from rlm_dspy.optimize.demos import from_run
from rlm_dspy.optimize.traced_runs import traced_runs
from rlm_dspy.testing import ScriptedLM

SIGNATURE = "context, question -> answer: str"
CANDIDATE = Path(__file__).with_name("policies") / "candidate.json"
LIMITS = Limits(max_iters=4, max_output_chars=1_500)

ASK = """reply = query_passages(context, question)
print(question, "->", reply)"""
ASK_EACH = """for each in ASKED:
    print(each, "->", query_passages(context, each))"""
ASK_ALL = """reply = query_passages(context, question, at_least=8)
print(question, "->", reply)"""
COUNT = """found = [line for line in context.splitlines() if "Orla" in line and "late" in line]
print(len(found), found[:3])"""
SUM = """df = context.df()
result = df["fare"].sum()
print(df.columns.tolist(), result)"""
GROUP = """df = context.df()
result = df.groupby("line")["passengers"].sum().sort_values(ascending=False)
print(result.head())"""
ASK_WORDS = "One thing has to be looked up: {}."
ASK_EACH_WORDS = "Two things have to be looked up: {}. I ask about each."
ASK_ALL_WORDS = "A list has to be made: {}. A sub-call reads all passages at once."
COUNT_WORDS = "Each line is a record, and the sub-call read only some of them. I count the records in code."


@dataclass(frozen=True)
class Run:
    """One run to show.

    Attributes:
        context: The text.
        question: The question.
        answer: What the run submits.
        turns: What the model writes, each as its words and its code.
        read: What its sub-calls answer, in turn.
    """

    context: str | Files | Table
    question: str
    answer: str
    turns: tuple[tuple[str, str], ...]
    read: tuple[str, ...] = ()


def folder(files: dict[str, str]) -> Files:
    """Return a folder with these files, which stays until this process ends."""
    path = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, path)
    for name, text in files.items():
        (path / name).write_text(text, encoding="utf-8")
    return Files.open(path)


def chosen(choose: str, what: str, **found: int) -> str:
    """Return code that submits the name with the smallest or largest of the numbers that were looked up."""
    return f"{what} = {json.dumps(found)}\nSUBMIT(answer={choose}({what}, key={what}.get))"


FILLER = "Rain fell on the lake and the road was closed. " * 60
SHIFTS = "\n".join(
    f"Shift {day} | {('Orla', 'Bex', 'Tam')[day % 3]} | {('late', 'on time')[day % 2]}" for day in range(1, 91)
)

LAST = ("The reply answers the question.", "SUBMIT(answer=reply.strip())")


def over_text(
    context: str | Files,
    question: str,
    answer: str,
    needed: str,
    asked: list[str],
    read: tuple[str, ...],
    *last: tuple[str, str],
) -> Run:
    """Return a run over a text or a folder: sub-calls answer the questions, the last turns make the answer."""
    words, code = (ASK_EACH_WORDS, ASK_EACH) if asked else (ASK_WORDS, ASK)
    listed = ", ".join(f'"{each}"' for each in asked)
    first = (words.format(needed), code.replace("ASKED", f"({listed})"))
    return Run(context, question, answer, (first, *last), read)


RUNS = (
    Run(
        "Mika rowed in May. " + FILLER + "Tove and Ravi joined the crew in June. " + FILLER,
        "Which people joined the crew? Name all.",
        "Tove, Ravi",
        ((ASK_ALL_WORDS.format("all who joined the crew"), ASK_ALL), LAST),
        ("Tove, Ravi",),
    ),
    over_text(
        SHIFTS,
        "How often was Orla late?",
        "15",
        "the number of times that Orla was late",
        [],
        ("9",),
        (COUNT_WORDS, COUNT),
        ("The count is the answer.", "SUBMIT(answer=str(len(found)))"),
    ),
    over_text(
        "Notes on the valley. " + FILLER + "The mill in Aldo was built in 1901 by Ines Roth. " + FILLER,
        "Who built the mill in Aldo?",
        "Ines Roth",
        "the one who built the mill in Aldo",
        [],
        ("Ines Roth",),
        LAST,
    ),
    over_text(
        "The mill in Teal dates from 1887. " + FILLER + "In Aldo the mill was built in 1901. " + FILLER,
        "Which of the two mills is older, that in Aldo or that in Teal?",
        "Teal",
        "the year of the mill in Aldo, and that of the mill in Teal",
        ["When was the mill in Aldo built?", "When was the mill in Teal built?"],
        ("In 1901", "1887"),
        ("The older one has the earlier year.", chosen("min", "years", Aldo=1901, Teal=1887)),
    ),
    over_text(
        "Boats cost 40 euros a day. " + FILLER + "The ferry to Sund has a bar. It holds 84 people. " + FILLER,
        "How many seats are there on the ferry to Sund?",
        "84",
        "the number of seats on the ferry to Sund",
        [],
        ("84",),
        LAST,
    ),
    over_text(
        "The ferry to Sund holds 84 people. " + FILLER + "The ferry to Hov has 120 seats. " + FILLER,
        "Of the ferries to Sund and Hov, whose number of seats is larger? Only the name.",
        "Hov",
        "the seats of the ferry to Sund, and those of the ferry to Hov",
        ["How many seats does the ferry to Sund have?", "How many seats does the ferry to Hov have?"],
        ("84", "120"),
        ("The larger number is that of Hov.", chosen("max", "seats", Sund=84, Hov=120)),
    ),
    over_text(
        "The boat was red. " + FILLER + "In 1996 the school in Rauma opened, the first on the coast. " + FILLER,
        "In which year did the school in Rauma open?",
        "1996",
        "the year in which the school in Rauma opened",
        [],
        ("1996",),
        LAST,
    ),
    over_text(
        folder(
            {
                "may.txt": "The mast was painted. " * 20 + "\nThe ladder is kept behind the sauna.",
                "june.txt": "The mast was cleaned. " * 20 + "\nThe boat was sold to a school in Rauma.",
                "july.txt": "It rained on the mast. " * 20 + "\nA ladder of the school broke.",
            }
        ),
        "Where is the ladder kept?",
        "behind the sauna",
        "the place of the ladder",
        [],
        ("behind the sauna",),
        LAST,
    ),
    over_text(
        folder(
            {
                "sund.md": "The sea was calm. " * 20 + "\nThe harbour in Sund opened in 1954.",
                "hov.md": "The sea was rough. " * 20 + "\nIn Hov the harbour dates from 1961.",
            }
        ),
        "Which harbour is older, that in Sund or that in Hov?",
        "Sund",
        "the year of the harbour in Sund, and that of the harbour in Hov",
        ["When was the harbour in Sund opened?", "When was the harbour in Hov opened?"],
        ("1954", "1961"),
        ("The older one has the earlier year.", chosen("min", "years", Sund=1954, Hov=1961)),
    ),
    over_text(
        folder(
            {
                "rules.txt": "Rowers wear vests. " * 20 + "\nA guest may stay for twelve nights.",
                "prices.txt": "Tea costs two euros. " * 20 + "\nA bed costs 30 euros.",
                "log.txt": "Nobody came. " * 20 + "\nA guest left early.",
            }
        ),
        "How many nights may a guest stay?",
        "twelve",
        "the number of nights that a guest may stay",
        [],
        ("twelve",),
        LAST,
    ),
    Run(
        Table.open(pd.DataFrame({"line": [4, 7, 4, 9] * 30, "passengers": range(120), "fare": [2, 3, 2, 5] * 30})),
        "What do the fares add up to?",
        "360",
        (
            ("The column `fare` has the numbers. I add them up in code.", SUM),
            ("The sum is the answer.", "SUBMIT(answer=str(result))"),
        ),
    ),
    Run(
        Table.open(pd.DataFrame({"line": [4, 7, 4, 9] * 30, "passengers": range(120), "fare": [2, 3, 2, 5] * 30})),
        "Which line carried the most passengers?",
        "4",
        (
            ("I add up `passengers` for each `line`, the largest first.", GROUP),
            ("The first line of the result is the answer.", "SUBMIT(answer=str(result.index[0]))"),
        ),
    ),
)


def program(runs: tuple[Run, ...]) -> RLM:
    """Return an RLM whose `act` has these runs as its demos.

    Raises:
        ValueError: If a run does not submit its answer.
    """
    traced = []
    rlm = RLM(SIGNATURE, limits=LIMITS, policy=None, demos_per_run=7)
    for run in runs:
        replies = [f"{words}\n```python\n{code}\n```" for words, code in run.turns]
        lm = ScriptedLM(act=replies, query=list(run.read))
        with dspy.context(lm=lm, trace=[]):
            prediction = rlm(context=run.context, question=run.question)
            printed = "".join(step["output"] for step in prediction.trajectory[:-1])
            if prediction.answer != run.answer or not all(part in printed for part in run.answer.split(", ")):
                raise ValueError(f"{run.question} Expected {run.answer}, saw {printed}.")
            traced += traced_runs(dspy.settings.trace)
    rlm.act.demos = [from_run(run, 1.0).example for run in traced]
    return rlm


def main(out: Annotated[Path, typer.Argument(help="The file.")] = CANDIDATE) -> None:
    """Write the policy."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    save_policy(
        program(RUNS),
        out,
        name="small-coders",
        model="small models for code",
        made_by="experiment/study/starter.py",
    )


if __name__ == "__main__":
    typer.run(main)
