"""Count what turns of a run are lost to: no code, a syntax error, haste, repetition, an input overwritten.

    uv run --extra embedded python experiment/bench/habits.py --model qwen2.5-coder-1.5b --label before --count 60
    uv run --extra embedded python experiment/bench/habits.py --report

The runs have no demos and at most six turns. Half of the tasks are questions on `articles.md` (every other fact
and count), half are generated (`families.py`, split `held_out`): the same for every engine and label. Every run
goes to `results/habits.jsonl` as it ends, with the model's replies, its code and what came out. A second start
goes on where the first one ended. The counts are made from these rows, in the same way for all engines.

A turn is lost if, in this order:

- `no code`: nothing was run
- `syntax`: the code is not Python
- `repetition`: an earlier turn of the run had the same code and the same output
- `haste`: it ends the run, or tries to, and no code so far names an input
- `overwritten`: the code binds the name of an input
"""

from __future__ import annotations

import ast
import functools
import itertools
import json
import os
import re
import sys
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import dspy
import typer

from rlm_dspy import RLM, Text
from rlm_dspy.models import choose_model, limits_for
from rlm_dspy.optimize.statistics import wilson

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "study")]
import row_file  # noqa: E402  # scripts of this folder are run, not installed
import running  # noqa: E402
from bridge import Bridge  # noqa: E402
from families import make  # noqa: E402
from tasks import Task  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = HERE / "results" / "habits.jsonl"
REPORT = HERE / "HABITS.md"
INPUTS = ("context", "question")
SIGNATURE = "context, question -> answer: str"
TURNS = 6
OUTPUT_CHARS = 1_500
REPLY_TOKENS = 450
GENERATED = ("needle", "needles", "count", "table")
GENERATED_CHARS = 20_000
FIELD_CHARS = 6_000
"""Characters of a reply, of code and of an output that a row keeps."""
LOSSES = ("no code", "syntax", "repetition", "haste", "overwritten")
HEADINGS = (
    *("model", "engine", "label", "runs", "raised", "turns a run", "lost"),
    *LOSSES,
    *("repeats to its end", "right", "95 %"),
)
ENDINGS = {"SUBMIT", "FINAL", "FINAL_VAR", "final_answer"}
"""The functions with which the engines end a run."""


class Turn(TypedDict):
    """A turn as every engine tells it."""

    reply: str
    code: str
    output: str


Ran = tuple[str, list[Turn]]
"""The answer, and the turns."""


def turn(reply: object, code: object, output: object) -> Turn:
    """Return a turn with its texts cut."""
    texts = [str(text or "")[:FIELD_CHARS] for text in (reply, code, output)]
    return {"reply": texts[0], "code": texts[1], "output": texts[2]}


def losses_of(turns: list[Turn]) -> list[str]:
    """Return what each turn is lost to; an empty string for one that is not."""
    seen: set[tuple[str, str]] = set()
    named, losses = False, []
    for step in turns:
        code, tree = step["code"].strip(), parsed(step["code"])
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} if tree else set()
        named = named or bool(names & set(INPUTS))
        done = (code, re.sub(r"<cell \d+>", "<cell>", step["output"]))  # an error names its cell
        again, ends = done in seen, bool(names & ENDINGS)
        seen.add(done)
        kinds = {
            "no code": not code,
            "syntax": tree is None,
            "repetition": again,
            "haste": ends and not named,
            "overwritten": tree is not None and bool(bound_names(tree) & set(INPUTS)),
        }
        losses.append(next((kind for kind, lost in kinds.items() if lost), ""))
    return losses


def parsed(code: str) -> ast.Module | None:
    """Return the tree of a cell, which may await; None if it is not Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            tree: ast.Module = compile(code, "cell", "exec", flags)
            return tree
    except (SyntaxError, ValueError):
        return None


def bound_names(tree: ast.Module) -> set[str]:
    """Return the names that a cell binds, but for those inside functions, classes and comprehensions."""
    scopes = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
    comprehensions = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    names, left = set(), list(ast.iter_child_nodes(tree))
    while left:
        node = left.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        if not isinstance(node, scopes + comprehensions):
            left += ast.iter_child_nodes(node)
    return names


def ours(task: Task, lm: dspy.LM) -> Ran:
    """Run our RLM without demos."""
    limits = limits_for(lm, max_iters=TURNS, max_output_chars=OUTPUT_CHARS)
    with dspy.context(lm=lm):
        prediction = RLM(SIGNATURE, limits=limits, policy=None)(context=Text(task.context), question=task.question)
    steps = [step for step in prediction.trajectory if step["kind"] != "folded"]
    return str(prediction.answer), [turn(step["reasoning"], step["code"], step["output"]) for step in steps]


def upstream(task: Task, lm: dspy.LM) -> Ran:
    """Run `dspy.RLM`."""
    rlm = dspy.RLM(
        SIGNATURE, max_iters=TURNS, max_output_chars=OUTPUT_CHARS, interpreter_factory=dspy.LocalInterpreter
    )
    with dspy.context(lm=lm):
        prediction = rlm(context=task.context, question=task.question)
    turns = [turn(step["reasoning"], step["code"], step["output"]) for step in prediction.trajectory]
    return str(prediction.answer), turns


def rlms(task: Task, lm: dspy.LM) -> Ran:
    """Run `rlms`, which reaches the model through a server on this machine."""
    import rlm
    from rlm.logger import RLMLogger

    class Kept(RLMLogger):
        """Keeps the iterations."""

        def __init__(self) -> None:
            super().__init__()
            self.turns: list[Turn] = []

        def log(self, iteration: Any) -> None:
            """Keep one."""
            blocks = iteration.code_blocks
            output = "\n".join(f"{block.result.stdout}{block.result.stderr}" for block in blocks)
            code = "\n".join(block.code for block in blocks)
            final = "" if code or iteration.final_answer is None else "FINAL(...)"
            self.turns.append(turn(iteration.response, code or final, output))

    log = Kept()
    with Bridge(lm) as bridge:
        backend = {"model_name": lm.model, "base_url": bridge.base_url("1"), "api_key": bridge.key}
        engine = rlm.RLM(
            backend="openai", backend_kwargs=backend, environment="local", max_iterations=TURNS, logger=log
        )
        answer = str(engine.completion(task.context, root_prompt=task.question).response)
    return answer, log.turns


ENGINES: dict[str, Callable[[Task, dspy.LM], Ran]] = {"ours": ours, "dspy.RLM": upstream, "rlms": rlms}


@functools.cache
def task_of(number: int) -> tuple[str, Task]:
    """Return a task and its kind: by turns a question on the articles and a generated one."""
    half, rest = divmod(number, 2)
    if rest:
        family = GENERATED[half % len(GENERATED)]
        return family, make(family, half // len(GENERATED), GENERATED_CHARS, "held_out")
    questions = json.loads((HERE.parent / "questions.json").read_text("utf-8"))["questions"]
    facts = [question for question in questions if question["kind"] == "fact"][::2]
    others = [question for question in questions if question["kind"] == "count"][::2]
    question = [*facts, *others][half]
    context = (HERE.parent / "articles.md").read_text("utf-8")
    task = Task(context, question["question"], str(question["answer"]), tuple(question.get("accept") or ()))
    return f"article, {question['kind']}", task


def run(engine: str, number: int, lm: dspy.LM) -> dict[str, Any]:
    """Ask one engine one question; an engine that raises has given a wrong answer."""
    kind, task = task_of(number)
    started, error, answer, turns = time.monotonic(), "", "", list[Turn]()
    try:
        answer, turns = ENGINES[engine](task, lm)
    except Exception as raised:  # noqa: BLE001  # an engine that breaks is a result of this bench
        error = f"{type(raised).__name__}: {raised}"[:300]
    return {
        "number": number,
        "kind": kind,
        "question": task.question,
        "gold": task.answer,
        "answer": answer[:300],
        "right": task.is_right(answer),
        "error": error,
        "seconds": round(time.monotonic() - started, 1),
        "turns": turns,
    }


def report(rows: list[dict[str, Any]]) -> str:
    """Return the table."""
    lines = [
        "# Turns lost to the protocol",
        "",
        "Made by `experiment/bench/habits.py` from `results/habits.jsonl`: no demos, at most six turns. Models in",
        "the process decode greedily. Over LM Studio's protocol they are sampled as a server does that is asked",
        "for no temperature (llama.cpp: 0.8), which `--temperature 0` changes for a user.",
        "A turn is counted once, under the first of its losses. Intervals: 95 %, Wilson.",
        "Rows of a revision are fewer than 60 where the machine was needed for something else.",
        "",
        f"| {' | '.join(HEADINGS)} |",
        "|---" * len(HEADINGS) + "|",
    ]
    groups = dict.fromkeys((row["model"], row["engine"], row["label"]) for row in rows)
    for model, engine, label in groups:
        group = [row for row in rows if (row["model"], row["engine"], row["label"]) == (model, engine, label)]
        losses = [losses_of(row["turns"]) for row in group]
        counts, turns = Counter(itertools.chain(*losses)), sum(map(len, losses))
        right = sum(task_of(row["number"])[1].is_right(row["answer"]) for row in group)  # one way for all rows
        low, high = wilson(right, len(group))
        stuck = sum(len(loss) == TURNS and loss[-1] == "repetition" for loss in losses)
        lost = turns - counts[""]
        lines.append(
            f"| {model} | {engine} | {label} | {len(group)} | {sum(bool(row['error']) for row in group)} "
            f"| {turns / len(group):.1f} | {lost} of {turns} ({lost / max(turns, 1):.0%}) "
            f"| {' | '.join(str(counts[loss]) for loss in LOSSES)} | {stuck} "
            f"| {right} | {low:.0%} to {high:.0%} |"
        )
    return "\n".join(lines) + "\n"


def main(
    model: Annotated[str, typer.Option(help="As for rlm-dspy ask --model.")] = "qwen2.5-coder-1.5b",
    engine: Annotated[str, typer.Option(help=f"Of: {', '.join(ENGINES)}.")] = "ours",
    label: Annotated[str, typer.Option(help="A word for this state of the code or of the set-up.")] = "now",
    count: Annotated[int, typer.Option(help="Runs, the first of up to 60 tasks.")] = 60,
    skip: Annotated[int, typer.Option(help="Leave out the first of them: another process asks these.")] = 0,
    together: Annotated[int, typer.Option(help="Runs at a time; a batch is decoded a little faster.")] = 1,
    only_report: Annotated[bool, typer.Option("--report", help="Ask nothing; write the table.")] = False,
) -> None:
    """Ask what has not been asked yet, then write the table."""
    rows = row_file.read(RESULTS)
    asked = {(row["model"], row["engine"], row["label"], row["number"]) for row in rows}
    left = [number for number in range(skip, count) if (model, engine, label, number) not in asked]
    lm = choose_model(model).copy(cache=False, max_tokens=REPLY_TOKENS) if left and not only_report else None
    pool = ThreadPoolExecutor(together)
    try:
        for done in as_completed([pool.submit(run, engine, number, lm) for number in left] if lm else []):
            row = {"model": model, "engine": engine, "label": label, **done.result()}
            row_file.append(RESULTS, row)
            said = ", ".join(loss or "-" for loss in losses_of(row["turns"]))
            print(
                f"#{row['number']} {row['kind']}: {row['right']} {row['seconds']} s [{said}] {row['error']}",
                flush=True,
            )
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt waits for the runs that were begun, and begins no others
    REPORT.write_text(report(row_file.read(RESULTS)), encoding="utf-8")
    print(REPORT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    running.run(main)
