"""The parts of the runs that start a small model: what the model writes, and how a run is put together."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlm_dspy import Files, Table

Kind = Literal["fact", "count", "list", "comparison"]
LAST = ("The reply answers the question.", "SUBMIT(answer=reply.strip())")
ASK = """reply = query_passages(context, question)
print(question, "->", reply)"""
ASK_EACH = """for each in ASKED:
    print(each, "->", query_passages(context, each))"""
ASK_ALL = """reply = query_passages(context, question, at_least=8)
print(question, "->", reply)"""
LOOK = """records = find_records(context)
print(len(records), "records:", list(records[0]))
for each in records[:3]:
    print([value[:40] for value in each.values()])
print(question)"""
LINES = """found = [each["text"] for each in records if CONDITION]
print(question, "->", len(found), found[:3])"""
KEEP = """found = sorted((each["DATE"], each["title"]) for each in records if CONDITION)
print(question, "->", len(found), found)"""
SUM = """df = context.df()
result = df["fare"].sum()
print(df.columns.tolist(), result)"""
GROUP = """df = context.df()
result = df.groupby("line")["passengers"].sum().sort_values(ascending=False)
print(result.head())"""
ASKS_WORDS = "It asks for {}. {} are no records."
ASK_WORDS = "query_passages looks up one thing: {}."
ASK_EACH_WORDS = "query_passages looks up two things: {}."
ASK_ALL_WORDS = "query_passages looks up all: {}."
LOOK_WORDS = "It asks for {}. {} are the records. find_records lists them."


@dataclass(frozen=True)
class Run:
    """One run to show.

    Attributes:
        kind: What kind of question it is; no model and no prompt sees it.
        context: The text.
        question: The question.
        answer: What the run submits.
        turns: What the model writes, each as its words and its code.
        read: What its sub-calls answer, in turn.
    """

    kind: Kind
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


def over_text(
    kind: Kind,
    context: str | Files,
    question: str,
    answer: str,
    asks: tuple[str, str, str],
    asked: list[str],
    read: tuple[str, ...],
    last: tuple[str, str] = LAST,
    words_and_code: tuple[str, str] | None = None,
) -> Run:
    """Return a run over a text or a folder: sub-calls answer the questions, the last turn makes the answer.

    Args:
        kind: What kind of question it is.
        context: The text or the folder.
        question: The question.
        answer: What the run submits.
        asks: What the question asks for; that in the plural; what has to be looked up.
        asked: The questions of the sub-calls; empty for the question itself.
        read: What the sub-calls answer.
        last: The words and the code of the last turn.
        words_and_code: Those of the first, instead of the usual ones.
    """
    words, code = words_and_code or ((ASK_EACH_WORDS, ASK_EACH) if asked else (ASK_WORDS, ASK))
    listed = ", ".join(f'"{each}"' for each in asked)
    said = f"{ASKS_WORDS.format(*asks)} {words.format(asks[2])}"
    return Run(kind, context, question, answer, ((said, code.replace("ASKED", f"[{listed}]")), last), read)


def over_records(
    kind: Kind,
    context: str,
    question: str,
    answer: str,
    asks: tuple[str, str, str],
    keep: tuple[str, str, str],
    last: str,
    name: str = "title",
) -> Run:
    """Return a run over records: it looks at them, filters them in code, and reads what is left.

    Args:
        kind: What kind of question it is.
        context: The text.
        question: The question.
        answer: What the run submits.
        asks: What the question asks for; what the records are; which of them are kept.
        keep: The condition in words; its code with what it filters; the field that sorts.
        last: The words of the last turn.
        name: The field that names a record.
    """
    condition, code, date = keep
    kept = LINES if date == "" else KEEP.replace("title", name)
    filtering = kept.replace("DATE", date).replace("CONDITION", code)
    turns = (
        (LOOK_WORDS.format(*asks), LOOK),
        (f"I keep {asks[2]}: {condition}.", filtering),
        (f"It asks for {asks[0]}. {last}", f"SUBMIT(answer={json.dumps(answer)})"),
    )
    return Run(kind, context, question, answer, turns)
