"""Finds a policy for the embedded model: worked conversations, chosen by what the model then gets right.

    uv run python experiment/make_policy.py

A scripted teacher solves training tasks by code in the real REPL; a run is kept only if the gold answer is among
what its code printed. A candidate is a way of searching and a number of such runs as demos. Each is tried by the
real model on development tasks (other seeds); the best is saved with what it scored. Held-out tasks (other
templates, other names) are not touched here; `experiment/bench/embedded.py` judges on them.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import dspy
import typer
from tasks import Task, one_fact_tasks

from rlm_dspy import RLM, Limits
from rlm_dspy.embedded import embedded_lm
from rlm_dspy.signatures.policy import POLICY_VERSION
from rlm_dspy.testing import ScriptedLM

SIGNATURE = "context, question -> answer: str"
INSTRUCTIONS = (
    "Answer the question by writing Python for a REPL, one block a turn. "
    "Print what you need to see, then SUBMIT the exact words of the answer."
)
LIMITS = Limits(max_iters=4, max_output_chars=1_500, max_llm_calls=0)
SHIPPED = Path(__file__).parents[1] / "signatures" / "policies"

RANK = """\
import re
words = set(re.findall(r"[\\w'-]{4,}", question.lower()))
sentences = re.split(r"(?<=[.!?])\\s+", context)
text = context.lower()
weight = {w: 1 / (1 + text.count(w)) for w in words}
score = [sum(weight[w] for w in words if w in s.lower()) for s in sentences]
"""
ASK_AGAIN = "print('Question:', question)"
SEARCHES = {
    "the best sentence": RANK + "print(sentences[score.index(max(score))])\n" + ASK_AGAIN,
    "the best sentence and the one behind it": (
        RANK + "best = score.index(max(score))\nprint(*sentences[best:best + 2])\n" + ASK_AGAIN
    ),
}
FIRST_WORDS = "I rank the sentences by the rare words of the question."
LAST_WORDS = "The text answers it."


def demos(search: str, tasks: list[Task]) -> list[dict[str, Any]]:
    """Return the last turns of the teacher's runs on those tasks where its code printed the answer."""
    kept = []
    for task in tasks:
        submit = f"SUBMIT(answer={json.dumps(task.answer)})"
        teacher = ScriptedLM([_reply(FIRST_WORDS, SEARCHES[search]), _reply(LAST_WORDS, submit)])
        with dspy.context(lm=teacher, trace=[]):
            prediction = program([])(context=task.context, question=task.question)
            _, inputs, action = dspy.settings.trace[-1]
        if task.answer in prediction.trajectory[0]["output"]:
            kept.append({**inputs, "reasoning": action.reasoning, "code": action.code})
    return kept


def program(demonstrations: list[dict[str, Any]]) -> RLM:
    """Return the program with the given demos."""
    rlm = RLM(SIGNATURE, limits=LIMITS, policy=None)
    rlm.act.signature = rlm.act.signature.with_instructions(INSTRUCTIONS)
    rlm.act.demos = demonstrations
    return rlm


def accuracy(rlm: RLM, tasks: list[Task]) -> int:
    """Return how many tasks the program gets right."""
    return sum(task.is_right(rlm(context=task.context, question=task.question).answer) for task in tasks)


def wilson(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share."""
    if not count:
        return 0.0, 1.0
    z, share = 1.96, right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def save(rlm: RLM, path: Path, provenance: dict[str, Any]) -> None:
    """Write the policy of a program."""
    policy = {
        "version": POLICY_VERSION,
        "name": path.stem,
        "model": path.stem,
        "provenance": provenance,
        "act": rlm.act.dump_state(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(policy, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _reply(words: str, code: str) -> str:
    return f"{words}\n```python\n{code}\n```"


@dataclass(frozen=True)
class Trial:
    """A candidate and what it scored on the development tasks."""

    search: str
    demos: int
    right: int
    of: int
    seconds: float


def attempt(search: str, count: int, training: list[Task], development: list[Task]) -> tuple[RLM, Trial]:
    """Build a candidate and let the configured model try it."""
    candidate = program(demos(search, training)[:count])
    started = time.monotonic()
    right = accuracy(candidate, development)
    seconds = round(time.monotonic() - started)
    return candidate, Trial(search, len(candidate.act.demos), right, len(development), seconds)


def main(
    out: Annotated[Path, typer.Option(help="Where the policy goes.")] = SHIPPED / "smollm2-135m-instruct.json",
    tasks: Annotated[int, typer.Option(help="Development tasks per candidate.")] = 12,
    chars: Annotated[int, typer.Option(help="Characters of each development context.")] = 100_000,
    demonstrations: Annotated[
        list[int] | None, typer.Option(help="Numbers of demos to try; 8 by default.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the model.")] = None,
) -> None:
    """Search, report every candidate, keep the best; of equal ones the first."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    development = one_fact_tasks(tasks, chars, split="search", seed=77)
    training = one_fact_tasks(16, 5_000, split="search", seed=1)
    tried: list[tuple[RLM, Trial]] = []
    for count, search in itertools.product(demonstrations or [8], SEARCHES):
        with dspy.context(lm=embedded_lm(cache=False, max_tokens=300, threads=threads)):
            tried.append(attempt(search, count, training, development))
        print(tried[-1][1], flush=True)
        best, trial = max(tried, key=lambda entry: entry[1].right)
        provenance = {
            "made_by": "experiment/make_policy.py",
            "date": datetime.now(UTC).date().isoformat(),
            "data": f"one_fact_tasks, split=search: training seed 1, development seed 77, {chars} characters",
            "best": {**asdict(trial), "interval_95": wilson(trial.right, trial.of)},
            "tried": [asdict(trial) for _, trial in tried],
        }
        save(best, out, provenance)


if __name__ == "__main__":
    typer.run(main)
