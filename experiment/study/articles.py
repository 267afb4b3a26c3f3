"""Asks the questions on `articles.md` with the model that runs in the process and one policy, and counts by kind.

    uv run --extra embedded python experiment/study/articles.py --policy shipped --half build
    uv run --extra embedded python experiment/study/articles.py --report

Every second article, from the first on, with the questions on these articles alone, is the half `build`: it may be
looked at while policies are made. All other questions are the half `final`, asked once, at the end. Every answer
goes to `results/articles.jsonl` as it comes; a second start goes on where the first one ended.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import dspy
import row_file
import typer
from tasks import Task, normalized

from rlm_dspy import RLM, Text
from rlm_dspy.embedded.engine import embedded_lm
from rlm_dspy.models import limits_for
from rlm_dspy.optimize.statistics import wilson
from rlm_dspy.signatures.policy import policy_for

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "articles.jsonl"
REPORT = HERE / "ARTICLES.md"
SIGNATURE = "context, question -> answer: str"
HALVES = ("build", "final")


def halves() -> dict[str, list[dict[str, Any]]]:
    """Return the questions of each half."""
    questions = json.loads((HERE.parent / "questions.json").read_text(encoding="utf-8"))["questions"]
    titles = re.findall(r"(?m)^# (.*)", (HERE.parent / "articles.md").read_text(encoding="utf-8"))
    build = set(titles[::2])
    return {
        "build": [each for each in questions if set(each["articles"]) <= build],
        "final": [each for each in questions if not set(each["articles"]) <= build],
    }


def in_turns(questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return questions so that kinds take turns in proportion, and an early end leaves all of them."""
    kinds = [each["kind"] for each in questions]
    place = [(kinds[:n].count(kind) + 1 / 2) / kinds.count(kind) for n, kind in enumerate(kinds)]
    return [questions[n] for n in sorted(range(len(questions)), key=place.__getitem__)]


def is_right(question: dict[str, Any], answer: str) -> bool:
    """Whether an answer is right: for a list, if it holds each of its parts and nothing else."""
    gold = question["answer"]
    if isinstance(gold, list):
        rest = normalized(answer)
        for part in sorted((normalized(str(part)) for part in gold), key=len, reverse=True):
            if part not in rest:
                return False
            rest = rest.replace(part, " ", 1)
        return set(rest.split()) <= {"and", "the", "a", "an", "per", "cent"}
    return Task("", question["question"], str(gold), tuple(question.get("accept") or ())).is_right(answer)


def ask(question: dict[str, Any], policy: str | Path | None, program: Path | None) -> dict[str, Any]:
    """Ask one question; an error is a wrong answer, and kept."""
    started, row = time.monotonic(), dict[str, Any](answer="", stop="failed")
    text = Text((HERE.parent / "articles.md").read_text(encoding="utf-8"))
    try:
        limits = limits_for(dspy.settings.lm, max_iters=4, max_output_chars=1_500)
        rlm = RLM(SIGNATURE, limits=limits, policy=policy)
        if program is not None:
            rlm.load(str(program))
        prediction = rlm(context=text, question=question["question"])
        row = {
            "answer": str(prediction.answer)[:300],
            "stop": prediction.stop,
            "input_tokens": prediction.usage["input_tokens"],
            "output_tokens": prediction.usage["output_tokens"],
            "code": [step["code"][:1_500] for step in prediction.trajectory],
        }
    except Exception as error:  # noqa: BLE001  # the row says what it was
        row["error"] = f"{type(error).__name__}: {str(error)[:300]}"
    return {**row, "right": is_right(question, row["answer"]), "seconds": round(time.monotonic() - started, 1)}


def report(rows: list[dict[str, Any]]) -> str:
    """Return the table."""
    groups: dict[tuple[str, str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for row, kind in itertools.product(rows, ("", "all")):
        groups[row["model"], row["policy"], row["half"], kind or row["kind"]].append(row)
    lines = [
        "# Questions on articles.md, by kind",
        "",
        "Made by `experiment/study/articles.py` from `results/articles.jsonl`. Intervals: 95 %, Wilson.",
        "`shipped-1` to `shipped-4` are the policies that were shipped before `shipped`; the others were not.",
        "`shipped, again` has the policy of `shipped`; its code reads tables and refuses a blind SUBMIT.",
        "Since then `shipped` has got runs over rows and logs: over the articles, the others are shown as before.",
        "All were asked with one thread, from `shipped-2` on with other processes beside: they took longer.",
        "",
        "| model | policy | half | kind | right | share | 95 % | median seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for names, group in sorted(groups.items()):
        right = sum(row["right"] for row in group)
        low, high = wilson(right, len(group))
        seconds = sorted(row["seconds"] for row in group)[len(group) // 2]
        share = f"{right / len(group):.0%} | {low:.0%} to {high:.0%}"
        lines.append(f"| {' | '.join(names)} | {right} of {len(group)} | {share} | {seconds:.0f} |")
    return "\n".join(lines) + "\n"


def main(
    model: Annotated[str, typer.Option(help="A name of the catalogue, or a file.")] = "qwen2.5-coder-1.5b",
    policy: Annotated[str, typer.Option(help="shipped, none, or the path of a policy file.")] = "shipped",
    program: Annotated[Path | None, typer.Option(help="A program that `optimize.py` compiled, to load.")] = None,
    half: Annotated[str, typer.Option(help=f"One of {HALVES}.")] = "build",
    label: Annotated[str, typer.Option(help="The policy's name in the results; by default its file's.")] = "",
    kind: Annotated[str, typer.Option(help="Only this kind; all by default.")] = "",
    threads: Annotated[int | None, typer.Option(help="Threads of the model.")] = None,
    only_report: Annotated[bool, typer.Option("--report", help="Ask nothing; write the table.")] = False,
) -> None:
    """Ask what has not been asked yet, then write the table."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    label = label or (program or Path(policy)).stem
    done = {(row["model"], row["policy"], row["id"]) for row in row_file.read(RESULTS)}
    left = [
        each
        for each in in_turns(halves()[half])
        if (model, label, each["id"]) not in done and kind in each["kind"]
    ]
    if left and not only_report:
        dspy.configure(lm=embedded_lm(model, cache=False, max_tokens=450, threads=threads))
        chosen = {"none": None, "shipped": policy_for(dspy.settings.lm)}.get(policy, policy)
        for question in left:
            row = {"model": model, "policy": label, "half": half, "id": question["id"], "kind": question["kind"]}
            row |= ask(question, chosen, program)
            row_file.append(RESULTS, row)
            print(row["id"], row["kind"], row["right"], f"{row['seconds']} s", row["answer"][:80], flush=True)
    REPORT.write_text(report(row_file.read(RESULTS)), encoding="utf-8")
    print(REPORT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    typer.run(main)
