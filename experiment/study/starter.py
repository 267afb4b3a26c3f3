"""Writes the policy that gets a small local model started: a few whole runs, over short made-up inputs.

    uv run python experiment/study/starter.py
    uv run --extra embedded python experiment/study/optimize.py candidates  # is it better than the shipped one?

A person wrote the programs of these runs, as the paper works: code narrows a text down, a sub-call reads what is
left. They are run for real over the inputs below, with scripted replies, and kept only if they submit the right
answer, after it was printed. Nothing in a program looks at what kind of question it has: no list of words, no
forms of answers. The model chooses between the ways that it was shown: all those for its kind of input, so that
the prompt begins alike for every question, and is read once. The texts and questions share nothing with
`families.py`, `tasks.py` or the articles.
"""

from __future__ import annotations

import atexit
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

READ = r"""import re
found = [part for part in re.split(r"(?<=[.!?])\s+|\n+", context) if FILTER]
text = "Matches:\n" + "\n".join(f"{number}. {part}" for number, part in enumerate(found[:15], 1))
text += f"\nNumber of matches: {len(found)}\n\nPassages:\n"
text += "\n\n".join(reversed(find_passages(context, question, count=4, chars=800))) + f"\n\nQuestion: {question}\n"
told = llm_query(text + "Say in one or two short sentences what the text tells about it, then the answer.")
short = llm_query(text + "Answer in a few words, not a sentence.")
print("Number of matches:", len(found))
print("Told:", told)
print("Short:", short)"""
OLDER = r"""years = {"Teal": 1887, "Aldo": 1901}
print(min(years, key=years.get))"""
READ_LINES = r"""import re
words = set(re.findall(r"\w{4,}", question.lower()))
hits = sorted((context.grep(f"(?i){word}") for word in words), key=len)
lines = []
for found in hits:
    for file, number, line in found[:5]:
        lines.append(f"{file}: {line}")
reply = llm_query("\n".join(lines[:12]) + "\n\nQuestion: " + question + "\nAnswer in a few words, not a sentence.")
print(lines[:3])
print("Reply:", reply)"""
SUM = """df = context.df()
result = df["fare"].sum()
print(df.columns.tolist(), result)"""
GROUP = """df = context.df()
result = df.groupby("line")["passengers"].sum().sort_values(ascending=False)
print(result.head())"""
READ_LINES_WORDS = "I search all files for the words of the question, and ask a sub-call about the rarest matches."
READ_WORDS = (
    "I pick the sentences and lines with the names of the question in code. A sub-call reads them, and the "
    "passages that share words with the question."
)


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


FILLER = "Rain fell on the lake and the road was closed. " * 60
SHIFTS = "\n".join(
    f"Shift {day} | {('Orla', 'Bex', 'Tam')[day % 3]} | {('late', 'on time')[day % 2]}" for day in range(1, 91)
)
BOATS = "\n".join(f"{('Kamo', 'Lura', 'Salo', 'Veni')[n % 4]} {n // 4};{1950 + n};{n + 1}" for n in range(40))


def over_text(
    context: str,
    question: str,
    answer: str,
    picks: str,
    replies: tuple[str, str],
    last: tuple[str, str],
    *between: tuple[str, str],
) -> Run:
    """Return a run over a text: code picks, sub-calls read, and the last turn submits the answer."""
    words, value = last
    turns = ((READ_WORDS, READ.replace("FILTER", picks)), *between, (words, f"SUBMIT(answer={value})"))
    return Run(context, question, answer, turns, replies)


RUNS = (
    over_text(
        "Mika rowed in May. " + FILLER + "Tove joined the crew. " + FILLER + "In June the crew took on Ravi.",
        "Which people joined the crew? Name all.",
        "Tove, Ravi",
        '"crew" in part',
        ("Tove joined the crew, and in June it took on Ravi. The answer is Tove, Ravi.", "Tove, Ravi"),
        ("The short reply names them all.", "short.strip()"),
    ),
    over_text(
        "The mill in Teal dates from 1887. " + FILLER + "In Aldo the mill was built in 1901. " + FILLER,
        "Which of the two mills is older, that in Aldo or that in Teal?",
        "Teal",
        '"Aldo" in part or "Teal" in part',
        (
            "The mill in Teal dates from 1887, and that in Aldo was built in 1901. The answer is Aldo.",
            "The mill in Aldo",
        ),
        ("Teal has the earlier year.", '"Teal"'),
        ("The reply tells both years. I compare them in code.", OLDER),
    ),
    over_text(
        SHIFTS,
        "How often was Orla late?",
        "15",
        '"Orla" in part and "late" in part',
        ("The matches are shifts at which Orla was late. The answer is 12.", "5"),
        ("Each match is one such shift, so the number of matches is the answer.", "str(len(found))"),
    ),
    over_text(
        f"boat;built;berth\n{BOATS}",
        "What is the berth of the boat Salo 6?",
        "27",
        '"Salo 6" in part',
        ("The line of Salo 6 is Salo 6;1976;27, and berth is the last column. The answer is 27.", "27"),
        ("Both replies say it.", "short.strip()"),
    ),
    over_text(
        "Notes on the valley. " + FILLER + "The mill in Aldo was built in 1901 by Ines Roth. " + FILLER,
        "Who built the mill in Aldo?",
        "Ines Roth",
        '"Aldo" in part',
        ("The mill in Aldo was built by Ines Roth. The answer is Ines Roth.", "Ines Roth"),
        ("The short reply answers the question.", "short.strip()"),
    ),
    over_text(
        "Boats cost 40 euros a day. " + FILLER + "The ferry to Sund has a bar. It holds 84 people. " + FILLER,
        "How many seats are there on the ferry to Sund?",
        "84",
        '"Sund" in part',
        ("The ferry to Sund has a bar and holds 84 people. The answer is 84.", "84"),
        ("The short reply answers the question.", "short.strip()"),
    ),
    Run(
        folder(
            {
                "may.txt": "The mast was painted. " * 20 + "\nThe ladder is kept behind the sauna.",
                "june.txt": "The mast was cleaned. " * 20 + "\nThe boat was sold to a school in Rauma.",
                "july.txt": "It rained on the mast. " * 20 + "\nA ladder of the school broke.",
            }
        ),
        "Where is the ladder kept?",
        "behind the sauna",
        ((READ_LINES_WORDS, READ_LINES), ("The reply answers the question.", "SUBMIT(answer=reply.strip())")),
        ("behind the sauna",),
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
    rlm = RLM(SIGNATURE, limits=LIMITS, policy=None, demos_per_run=6)
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
        program(RUNS), out, name="small-models", model="small models", made_by="experiment/study/starter.py"
    )


if __name__ == "__main__":
    typer.run(main)
