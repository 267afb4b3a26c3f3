"""Writes the policy that gets a small local model started: a few whole runs, over short made-up inputs.

    uv run python experiment/study/starter.py

A person wrote the programs of these runs, as the paper works: code narrows a text down, a sub-call reads what is
left. They are run for real over the inputs below, with scripted replies, and kept only if they submit the right
answer. Nothing in a program looks at what kind of question it has: no list of words, no forms of answers. The
texts and questions share nothing with `families.py`, `tasks.py` or the articles.
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
SHIPPED = Path(__file__).parents[2] / "signatures" / "policies" / "small-models.json"
LIMITS = Limits(max_iters=4, max_output_chars=1_500)

READ_BEST = r"""import re
passages = [context[at:at + 800] for at in range(0, len(context), 600)]
words = set(re.findall(r"\w{4,}", question.lower()))
weight = {word: 1 / (1 + context.lower().count(word)) for word in words}
passages.sort(key=lambda passage: -sum(weight[word] for word in words if word in passage.lower()))
reply = llm_query("\n\n".join(passages[:4]) + "\n\nQuestion: " + question + "\nAnswer in a few words, not a sentence.")
print(passages[0][:200])
print("Reply:", reply)"""  # noqa: E501  # code as the model shall write it
COUNT = """found = [line for line in context.splitlines() if "Orla" in line and "late" in line]
print(len(found), found[:3])"""
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
READ_BEST_WORDS = "I rank the passages by the rare words of the question, and ask a sub-call about the best ones."


@dataclass(frozen=True)
class Run:
    """One run to show.

    Attributes:
        context: The text.
        question: The question.
        answer: What the run submits.
        turns: What the model writes, each as its words and its code.
        read: What the sub-call answers; None if there is none.
    """

    context: str | Files | Table
    question: str
    answer: str
    turns: tuple[tuple[str, str], ...]
    read: str | None = None


def folder(files: dict[str, str]) -> Files:
    """Return a folder with these files, which stays until this process ends."""
    path = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, path)
    for name, text in files.items():
        (path / name).write_text(text, encoding="utf-8")
    return Files.open(path)


RUNS = (
    Run(
        "The mill in Aldo was built in 1901 by Ines Roth. " * 3 + "A storm came. " * 400,
        "Who built the mill in Aldo?",
        "Ines Roth",
        (
            (READ_BEST_WORDS, READ_BEST),
            ("The reply answers the question.", "SUBMIT(answer=reply.strip())"),
        ),
        "Ines Roth",
    ),
    Run(
        "\n".join(
            f"Shift {day} | {('Orla', 'Bex', 'Tam')[day % 3]} | {('late', 'on time')[day % 2]}"
            for day in range(1, 91)
        ),
        "How often was Orla late?",
        "15",
        (
            (READ_BEST_WORDS, READ_BEST),
            (
                "Each line is a record, and the sub-call read only some of them. I count the records in code.",
                COUNT,
            ),
            ("The count is the answer.", "SUBMIT(answer=str(len(found)))"),
        ),
        "9",
    ),
    Run(
        "Boats cost 40 euros a day. " + "Rain fell on the lake. " * 500 + "The ferry has 84 seats.",
        "How many seats does the ferry have?",
        "84",
        (
            (READ_BEST_WORDS, READ_BEST),
            ("The reply answers the question.", "SUBMIT(answer=reply.strip())"),
        ),
        "84",
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
        "behind the sauna",
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
    rlm = RLM(SIGNATURE, limits=LIMITS, policy=None, demos_per_run=3)
    for run in runs:
        replies = [f"{words}\n```python\n{code}\n```" for words, code in run.turns]
        lm = ScriptedLM(act=replies, query=[run.read] if run.read is not None else [])
        with dspy.context(lm=lm, trace=[]):
            prediction = rlm(context=run.context, question=run.question)
            if prediction.answer != run.answer:
                raise ValueError(f"{run.question} Expected {run.answer}, submitted {prediction.answer}.")
            traced += traced_runs(dspy.settings.trace)
    rlm.act.demos = [from_run(run, 1.0).example for run in traced]
    return rlm


def main(out: Annotated[Path, typer.Argument(help="The file.")] = SHIPPED) -> None:
    """Write the policy."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    save_policy(
        program(RUNS), out, name="small-models", model="small models", made_by="experiment/study/starter.py"
    )


if __name__ == "__main__":
    typer.run(main)
