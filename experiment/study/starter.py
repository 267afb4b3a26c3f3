"""Writes the policy that gets a small local model started: a few whole runs, over short made-up inputs.

    uv run python experiment/study/starter.py
    uv run --extra embedded python experiment/study/optimize.py candidates  # is it better than the shipped one?

A person wrote the programs of these runs, as the paper works: the model says what the question asks for, and
whether the records of the text are that. If not, code finds the passages and a sub-call reads them; if so, code
filters the records, and the model reads what is left. They are run for real over the inputs below, with scripted
replies, and kept only if they submit the right answer, after it was printed. Nothing in a program looks at what
kind of question it has: no list of words, no forms of answers. The model is shown all runs over its kind of
input, so that the prompt begins alike for every question, and is read once. The texts and questions share
nothing with `families.py`, `tasks.py` or the articles.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import dspy
import pandas as pd
import typer
from starter_parts import (
    ASK_ALL,
    ASK_ALL_WORDS,
    GROUP,
    SUM,
    Kind,
    Run,
    chosen,
    folder,
    over_records,
    over_text,
)
from starter_rows import ENTRIES_RUNS, ROWS_RUNS

from rlm_dspy import RLM, Limits, Table
from rlm_dspy.optimize import save_policy
from rlm_dspy.optimize.demos import from_run
from rlm_dspy.optimize.traced_runs import traced_runs
from rlm_dspy.testing import ScriptedLM

if TYPE_CHECKING:
    from collections.abc import Sequence

SIGNATURE = "context, question -> answer: str"
CANDIDATE = Path(__file__).with_name("policies") / "candidate.json"
LIMITS = Limits(max_iters=4, max_output_chars=1_500)

RAIN = "Rain fell on the lake and the road was closed. "
FILLER = RAIN * 60
SHIFTS = "\n".join(
    f"Shift {day} | {('Orla', 'Bex', 'Tam')[day % 3]} | {('late', 'on time')[day % 2]}" for day in range(1, 91)
)
BOATS = (
    ("Tern", "Ines Roth", "1984-05-02"),
    ("Auk", "Bo Ek", "1991-08-30"),
    ("Gull", "Ines Roth", "1996-04-17"),
    ("Mara", "Bo Ek", "1991-02-11"),
    ("Skua", "Ines Roth", "1988-11-23"),
    ("Knot", "Tam Hale", "1999-01-05"),
    ("Teal", "Bo Ek", "1979-06-30"),
    ("Dunlin", "Tam Hale", "1986-09-14"),
)
HEADS = (
    ("A Wet May", "Bo Ek", "1998-05-04"),
    ("Mills of the Valley", "Ines Roth", "1999-02-11"),
    ("Two Roads", "Tam Hale", "2001-06-30"),
    ("On the Lake", "Bo Ek", "2002-03-17"),
)


def boats(sails: str = "") -> str:
    """Return a list of boats, with something said of one of them."""
    each = [f"# {name}\nOwner: {owner}\nBuilt: {built}\n\n{RAIN * 5}" for name, owner, built in BOATS]
    return "Boats in the harbour of Aldo.\n\n" + "\n\n".join(each).replace(
        f"{RAIN}\n\n# Mara", f"{RAIN}{sails}\n\n# Mara"
    )


def letters(*said: str) -> str:
    """Return four letters, with something said in each."""
    bodies = [f"{RAIN * 15}{each} {RAIN * 15}" for each in (*said, "", "", "", "")]
    each = [
        f"# {title}\nAuthor: {author}\nDate: {date}\n\n{body}"
        for (title, author, date), body in zip(HEADS, bodies, strict=False)
    ]
    return "Letters from the valley, each with its author and date.\n\n" + "\n\n".join(each)


FARES = Table.open(pd.DataFrame({"line": [4, 7, 4, 9] * 30, "passengers": range(120), "fare": [2, 3, 2, 5] * 30}))

RUNS = (
    over_text(
        "list",
        letters("Mika rowed in May.", "Tove and Ravi joined the crew in June."),
        "Which people joined the crew? Name all.",
        "Tove, Ravi",
        ("people", "People", "all who joined the crew"),
        [],
        ("Tove, Ravi",),
        words_and_code=(ASK_ALL_WORDS, ASK_ALL),
    ),
    over_records(
        "count",
        SHIFTS,
        "How often was Orla late?",
        "15",
        ("a number of shifts", "Shifts", "the shifts on which Orla was late"),
        ("the text has Orla and late", '"Orla" in each["text"] and "late" in each["text"]', ""),
        "The count is 15.",
    ),
    over_text(
        "fact",
        letters("", "The mill in Aldo was built in 1901 by Ines Roth."),
        "Who built the mill in Aldo?",
        "Ines Roth",
        ("a person", "Persons", "the one who built the mill in Aldo"),
        [],
        ("Ines Roth",),
    ),
    over_records(
        "list",
        letters(),
        "Give the titles of the letters that were sent from 2000 to 2002.",
        "Two Roads, On the Lake",
        ("titles of letters", "Letters", "the letters that were sent from 2000 to 2002"),
        ("Date is from 2000-01-01 to 2002-12-31", '"2000-01-01" <= each["Date"] <= "2002-12-31"', "Date"),
        "Two are left.",
    ),
    over_text(
        "comparison",
        letters("The mill in Teal dates from 1887.", "In Aldo the mill was built in 1901."),
        "Which of the two mills is older, that in Aldo or that in Teal?",
        "Teal",
        ("a mill", "Mills", "the year of the mill in Aldo, and that of the mill in Teal"),
        ["When was the mill in Aldo built?", "When was the mill in Teal built?"],
        ("In 1901", "1887"),
        ("The older one has the earlier year.", chosen("min", "years", Aldo=1901, Teal=1887)),
    ),
    over_records(
        "list",
        boats(),
        "What is the name of the newest boat of Tam Hale?",
        "Knot",
        ("the newest boat", "Boats", "the boats of Tam Hale"),
        ("Owner is Tam Hale. I sort them by Built", 'each["Owner"] == "Tam Hale"', "Built"),
        "The newest has the latest date: Knot, 1999-01-05.",
    ),
    over_text(
        "fact",
        "Boats cost 40 euros a day. " + FILLER + "The ferry to Sund has a bar. It holds 84 people. " + FILLER,
        "How many seats are there on the ferry to Sund?",
        "84",
        ("a number of seats", "Seats", "the number of seats on the ferry to Sund"),
        [],
        ("84",),
    ),
    over_records(
        "list",
        boats(),
        "Which of her boats did Ines Roth have built before 1990?",
        "Tern, Skua",
        ("boats", "Boats", "the boats that Ines Roth had built before 1990"),
        (
            "Owner is Ines Roth, Built is before 1990-01-01",
            'each["Owner"] == "Ines Roth" and each["Built"] < "1990-01-01"',
            "Built",
        ),
        "Two are left.",
    ),
    over_text(
        "comparison",
        letters("The ferry to Sund holds 84 people.", "", "The ferry to Hov has 120 seats."),
        "Of the ferries to Sund and Hov, whose number of seats is larger? Only the name.",
        "Hov",
        ("a ferry", "Ferries", "the seats of the ferry to Sund, and those of the ferry to Hov"),
        ["How many seats does the ferry to Sund have?", "How many seats does the ferry to Hov have?"],
        ("84", "120"),
        ("The larger number is that of Hov.", chosen("max", "seats", Sund=84, Hov=120)),
    ),
    over_records(
        "count",
        boats(),
        "How many boats that were built in 1991 does Bo Ek own?",
        "2",
        ("a number of boats", "Boats", "the boats of Bo Ek that were built in 1991"),
        ("Owner is Bo Ek, Built has 1991", 'each["Owner"] == "Bo Ek" and "1991" in each["Built"]', "Built"),
        "The count is 2.",
    ),
    over_text(
        "fact",
        boats("The Gull carries 12 sails."),
        "How many sails does the boat Gull of Ines Roth carry?",
        "12",
        ("a number of sails", "Sails", "the number of sails that the Gull carries"),
        [],
        ("12",),
    ),
    over_text(
        "fact",
        folder(
            {
                "may.txt": "The mast was painted. " * 20 + "\nThe ladder is kept behind the sauna.",
                "june.txt": "The mast was cleaned. " * 20 + "\nThe boat was sold to a school in Rauma.",
                "july.txt": "It rained on the mast. " * 20 + "\nA ladder of the school broke.",
            }
        ),
        "Where is the ladder kept?",
        "behind the sauna",
        ("a place", "Places", "the place of the ladder"),
        [],
        ("behind the sauna",),
    ),
    over_text(
        "comparison",
        folder(
            {
                "sund.md": "The sea was calm. " * 20 + "\nThe harbour in Sund opened in 1954.",
                "hov.md": "The sea was rough. " * 20 + "\nIn Hov the harbour dates from 1961.",
            }
        ),
        "Which harbour is older, that in Sund or that in Hov?",
        "Sund",
        ("a harbour", "Harbours", "the year of the harbour in Sund, and that of the harbour in Hov"),
        ["When was the harbour in Sund opened?", "When was the harbour in Hov opened?"],
        ("1954", "1961"),
        ("The older one has the earlier year.", chosen("min", "years", Sund=1954, Hov=1961)),
    ),
    over_text(
        "fact",
        folder(
            {
                "rules.txt": "Rowers wear vests. " * 20 + "\nA guest may stay for twelve nights.",
                "prices.txt": "Tea costs two euros. " * 20 + "\nA bed costs 30 euros.",
                "log.txt": "Nobody came. " * 20 + "\nA guest left early.",
            }
        ),
        "How many nights may a guest stay?",
        "twelve",
        ("a number of nights", "Nights", "the number of nights that a guest may stay"),
        [],
        ("twelve",),
    ),
    Run(
        "count",
        FARES,
        "What do the fares add up to?",
        "360",
        (
            ("The column `fare` has the numbers. I add them up in code.", SUM),
            ("The sum is the answer.", "SUBMIT(answer=str(result))"),
        ),
    ),
    Run(
        "comparison",
        FARES,
        "Which line carried the most passengers?",
        "4",
        (
            ("I add up `passengers` for each `line`, the largest first.", GROUP),
            ("The first line of the result is the answer.", "SUBMIT(answer=str(result.index[0]))"),
        ),
    ),
)


def demos(runs: Sequence[Run]) -> list[dspy.Example]:
    """Return the demos that these runs make.

    Raises:
        ValueError: If a run does not submit its answer.
    """
    traced = []
    rlm = RLM(SIGNATURE, limits=LIMITS, policy=None)
    for run in runs:
        replies = [f"{words}\n```python\n{code}\n```" for words, code in run.turns]
        lm = ScriptedLM(act=replies, query=list(run.read))
        with dspy.context(lm=lm, trace=[]):
            prediction = rlm(context=run.context, question=run.question)
            printed = "".join(step["output"] for step in prediction.trajectory[:-1])
            if prediction.answer != run.answer or not all(part in printed for part in run.answer.split(", ")):
                raise ValueError(f"{run.question} Expected {run.answer}, saw {printed}.")
            traced += traced_runs(dspy.settings.trace)
    return [from_run(run, 1.0).example for run in traced]


def program(kind: Kind | None = None) -> RLM:
    """Return an RLM whose `act` has the demos of all runs, or of those with a question of one kind.

    The demos over a kind of input are shown to runs over it.
    """
    runs, *special = (
        [run for run in each if kind in (None, run.kind)] for each in (RUNS, ROWS_RUNS, ENTRIES_RUNS)
    )
    rlm = RLM(SIGNATURE, limits=LIMITS, policy=None, demos_per_run=11)
    rlm.act.demos = [*map(over_any_text, demos(runs)), *(demo for each in special for demo in demos(each))]
    return rlm


def over_any_text(demo: dspy.Example) -> dspy.Example:
    """Return a demo that runs over any text show: the shifts are rows, but code counts all lines like these."""
    shown = (variable.model_copy(update={"form": ""}) for variable in demo.environment.variables)
    return demo.copy(environment=demo.environment.model_copy(update={"variables": tuple(shown)}))


def main(out: Annotated[Path, typer.Argument(help="The file.")] = CANDIDATE) -> None:
    """Write the policy."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    save_policy(
        program(),
        out,
        name="small-coders",
        model="small models for code",
        made_by="experiment/study/starter.py",
    )


if __name__ == "__main__":
    typer.run(main)
