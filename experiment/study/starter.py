"""Writes the policy that gets a small local model started: a few whole runs, over short made-up texts.

    uv run python experiment/study/starter.py

A person wrote the programs of these runs, as the paper works: code narrows a text down, a sub-call reads what is
left. They are run for real over the texts below, with scripted replies, and kept only if they submit the right
answer. Nothing in a program looks at what kind of question it has: no list of words, no forms of answers. The
texts and questions share nothing with `families.py`, `tasks.py` or the articles.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import dspy
import typer

from rlm_dspy import RLM, Limits
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

    context: str
    question: str
    answer: str
    turns: tuple[tuple[str, str], ...]
    read: str | None = None


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
)


def program(runs: tuple[Run, ...]) -> RLM:
    """Return an RLM whose `act` has these runs as its demos.

    Raises:
        ValueError: If a run does not submit its answer.
    """
    traced = []
    rlm = RLM(SIGNATURE, limits=LIMITS, policy=None)
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
