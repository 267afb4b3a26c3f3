"""How often the embedded model is right: through our RLM, asked directly, and through `dspy.RLM`.

    uv run python experiment/bench/embedded.py                 # everything that is not in the results yet
    uv run python experiment/bench/embedded.py --engine ours --count 5 --chars 100000

Same model, greedy, in one process. Generated tasks are held out: templates and names that the search for the
policy never saw. `direct` gets the question and as much of the document as fits the window. Every answer goes to
`results/embedded.jsonl` as it comes; a second start goes on where the first one ended.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import dspy
import typer

from rlm_dspy import RLM, Text
from rlm_dspy.embedded.engine import embedded_lm
from rlm_dspy.models import limits_for
from rlm_dspy.optimize.statistics import wilson

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "study"))
import row_file  # noqa: E402  # scripts of this folder are run, not installed
from tasks import Task, one_fact_tasks  # noqa: E402  # scripts of this folder are run, not installed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIGNATURE = "context, question -> answer: str"
RESULTS = HERE / "results" / "embedded.jsonl"
REPORT = HERE / "EMBEDDED.md"
REPLY_TOKENS = 450
"""Of the model; rows without this number were made with 200."""
DIRECT_TOKENS = 7_900  # of a window of 8,192: room for the question, the template and the answer
ENGINES = ("ours", "direct", "dspy.RLM")
Answered = tuple[str, dict[str, Any]]


def ours(task: Task) -> Answered:
    """Ask our RLM, with the policy shipped for the model."""
    rlm = RLM(SIGNATURE, limits=limits_for(dspy.settings.lm, max_iters=4, max_output_chars=1_500))
    prediction = rlm(context=Text(task.context), question=task.question)
    usage = prediction.usage
    return str(prediction.answer), {
        "stop": prediction.stop,
        "turns": len(prediction.trajectory),
        "input_tokens": usage["input_tokens"],
        "cached_input_tokens": usage["cached_input_tokens"],
        "output_tokens": usage["output_tokens"],
    }


def direct(task: Task) -> Answered:
    """Ask the model itself, with the beginning of the document."""
    lm = dspy.settings.lm
    chars = min(len(task.context), DIRECT_TOKENS * 5)
    while lm.engine.count_tokens(task.context[:chars]) > DIRECT_TOKENS - 200:
        chars = int(chars * 0.95)
    prompt = (
        f"{task.context[:chars]}\n\nQuestion: {task.question}\nAnswer with the exact words, nothing else.\nAnswer:"
    )
    return _ask(lm, prompt), {"chars_shown": chars}


def _ask(lm: dspy.LM, prompt: str) -> str:
    system = {"role": "system", "content": "Answer the question from the text."}
    reply = lm(messages=[system, {"role": "user", "content": prompt}], max_tokens=40)[0]
    return str(reply["text"] if isinstance(reply, dict) else reply).strip()


def upstream(task: Task) -> Answered:
    """Ask `dspy.RLM` with as many turns."""
    rlm = dspy.RLM(SIGNATURE, max_iters=4, max_output_chars=1_500, interpreter_factory=dspy.LocalInterpreter)
    prediction = rlm(context=task.context, question=task.question)
    return str(prediction.answer), {"turns": len(prediction.trajectory)}


ASK: dict[str, Callable[[Task], Answered]] = {"ours": ours, "direct": direct, "dspy.RLM": upstream}


def article_tasks() -> list[Task]:
    """Return the fact questions on the corpus."""
    context = (HERE.parent / "articles.md").read_text(encoding="utf-8")
    questions = json.loads((HERE.parent / "questions.json").read_text(encoding="utf-8"))["questions"]
    return [
        Task(context, question["question"], str(question["answer"]), tuple(question.get("accept") or ()))
        for question in questions
        if question["kind"] == "fact"
    ]


def task_sets(count: int, sizes: list[int]) -> Iterator[tuple[str, list[Task]]]:
    """Yield the sets of tasks by name."""
    yield "fact questions on articles.md", article_tasks()
    for chars in sizes:
        name = f"one fact in {chars:,} characters"
        yield name, one_fact_tasks(count, chars, split="held_out", seed=5, questions_per_context=5)


def run(engine: str, set_name: str, number: int, task: Task) -> dict[str, Any]:
    """Ask one engine one question; an error counts as a wrong answer and is named."""
    started = time.monotonic()
    try:
        answer, details = ASK[engine](task)
    except Exception as error:  # noqa: BLE001  # an engine that breaks is a result of this bench
        answer, details = "", {"error": f"{type(error).__name__}: {error}"[:200]}
    return {
        "engine": engine,
        "set": set_name,
        "number": number,
        "question": task.question,
        "gold": task.answer,
        "answer": answer[:200],
        "right": task.is_right(answer),
        "seconds": round(time.monotonic() - started, 2),
        "reply_tokens": REPLY_TOKENS,
        **details,
    }


def report(rows: list[dict[str, Any]]) -> str:
    """Return the table of all results so far."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["set"], row["engine"]].append(row)
    lines = [
        "# The embedded model (SmolLM2-135M-Instruct): right answers",
        "",
        "Made by `experiment/bench/embedded.py` from `results/embedded.jsonl`. Intervals: 95 %, Wilson.",
        "",
        "| tasks | engine | right | share | 95 % interval | median seconds | runs that raised | reply tokens |",
        "|---|---|---|---|---|---|---|---|",
    ]
    names = list(dict.fromkeys(row["set"] for row in rows))
    for name, engine in itertools.product(names, ENGINES):
        if group := groups.get((name, engine)):
            right, count = sum(row["right"] for row in group), len(group)
            low, high = wilson(right, count)
            seconds = sorted(row["seconds"] for row in group)[count // 2]
            raised = sum("error" in row for row in group)
            lines.append(
                f"| {name} | {engine} | {right}/{count} | {right / count:.0%} | {low:.0%} to {high:.0%} "
                f"| {seconds:.1f} | {raised} | {group[0].get('reply_tokens', 200)} |"
            )
    return "\n".join(lines) + "\n"


def main(
    engine: Annotated[list[str] | None, typer.Option(help="ours, direct, dspy.RLM; all by default.")] = None,
    count: Annotated[int, typer.Option(help="Generated tasks per size.")] = 20,
    chars: Annotated[list[int] | None, typer.Option(help="Sizes; 0.1, 1 and 10 million by default.")] = None,
    only: Annotated[str, typer.Option(help="Ask only the sets with this in their name, e.g. articles.")] = "",
    threads: Annotated[int | None, typer.Option(help="Threads of the model.")] = None,
) -> None:
    """Ask what has not been asked yet, then write the table."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    dspy.configure(lm=embedded_lm("smollm2-135m", cache=False, max_tokens=REPLY_TOKENS, threads=threads))
    rows = row_file.read(RESULTS)
    done = {(row["engine"], row["set"], row["number"]) for row in rows}
    for name, tasks in task_sets(count, chars or [100_000, 1_000_000, 10_000_000]):
        for asked, (number, task) in itertools.product(engine or ENGINES, enumerate(tasks)):
            if (asked, name, number) in done or only not in name:
                continue
            row = run(asked, name, number, task)
            row_file.append(RESULTS, row)
            print(asked, name, number, row["right"], f"{row['seconds']} s", flush=True)
    rows = row_file.read(RESULTS)
    REPORT.write_text(report(rows), encoding="utf-8")
    print(report(rows))


if __name__ == "__main__":
    typer.run(main)
