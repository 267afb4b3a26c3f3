"""How often each engine is right, with any model: generated tasks, and the questions on the articles.

    uv run --extra embedded --extra rlms python experiment/bench/accuracy.py --model openai/gpt-5-mini \
        --engine ours --engine rlms --engine direct --family classify --chars 100000 --count 50

A few runs of each kind come first; from them it says what the rest will cost and take, and asks before it goes on.
Every answer goes to `results/accuracy.jsonl` as it comes: a second start goes on where the first one ended, and a
larger `--count` adds to what is there. All engines reach the model through one address (`bridge.py`), where tokens
and cost are counted alike.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import typer
from processes import ENGINES, EngineDied, Worker

from rlm_dspy.models import choose_model, limits_for
from rlm_dspy.signatures import load_policy

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "study"))
import row_file  # noqa: E402  # scripts of this folder are run, not installed
import running  # noqa: E402
from accuracy_report import RESULTS, forecast, key_of, read_rows, write_report  # noqa: E402  # scripts of this folder are run, not installed
from bridge import Bridge  # noqa: E402
from families import FAMILIES, make  # noqa: E402
from family_words import SPLITS, Split  # noqa: E402
from tasks import Task  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

ARTICLES = "articles"
ALONE = "Give the answer alone, in as few words as it takes."
BARE = ("needle", ARTICLES)
"""Families whose questions do not say that the answer is to stand alone; it is said with them, to every engine."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """One question to one engine, and what tells it from all others."""

    engine: str
    family: str
    chars: int
    seed: int
    split: Split

    def task(self) -> Task:
        """Return the task."""
        if self.family != ARTICLES:
            return make(self.family, self.seed, self.chars, self.split)
        context = (HERE.parent / "articles.md").read_text(encoding="utf-8")
        question = questions()[self.seed]
        return Task(context, question["question"], str(question["answer"]), tuple(question.get("accept") or ()))


def questions() -> list[dict[str, Any]]:
    """Return the questions on the articles that have one short answer."""
    found: list[dict[str, Any]] = json.loads((HERE.parent / "questions.json").read_text("utf-8"))["questions"]
    return [question for question in found if question["kind"] in ("fact", "count")]


@dataclass(frozen=True)
class Settings:
    """What all runs of a start have in common; rows of other settings are not counted as done."""

    model: str
    sub_model: str
    turns: int
    calls: int
    output_chars: int
    policy: str

    def row(self) -> Row:
        """Return them as they stand in a row."""
        return vars(self).copy()


class Runs:
    """Asks engines, one worker for each, and keeps every answer."""

    def __init__(self, settings: Settings, bridge: Bridge, patience: float, *, retry: bool = False) -> None:
        self._settings = settings
        self._retry = retry
        self._bridge = bridge
        self._patience = patience
        self._workers: dict[str, Worker] = {}
        self._number = 0
        self.rows = read_rows()

    def left(self, wanted: list[Asked]) -> list[Asked]:
        """Return those that no row answers yet; one that failed answers, unless it is to be asked again."""
        done = {key_of(row) for row in self.rows if not (self._retry and row["error"])}
        return [asked for asked in wanted if key_of({**vars(asked), **self._settings.row()}) not in done]

    def ask(self, asked: Asked) -> Row:
        """Ask once and keep the row."""
        task = asked.task()
        self._number += 1
        run = str(self._number)
        started = time.monotonic()
        answer, error = self._answer(asked, task, self._bridge.base_url(run))
        spent = self._bridge.usage(run)
        row = {
            **vars(asked),
            **self._settings.row(),
            "question": task.question,
            "gold": task.answer,
            "answer": (answer or "")[:500],
            "right": answer is not None and task.is_right(answer),
            "error": error,
            "seconds": round(time.monotonic() - started, 2),
            "model_calls": spent["calls"],
            "failed_calls": spent["failures"],
            **{name: spent[name] for name in ("input_tokens", "cached_input_tokens", "output_tokens", "cost")},
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        self.rows.append(row)
        row_file.append(RESULTS, row)
        return row

    def _answer(self, asked: Asked, task: Task, base_url: str) -> tuple[str | None, str | None]:
        with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
            file.write(task.context)
            file.flush()
            settings = self._settings
            request = {
                "op": "run",
                "mode": "threads",
                "base_urls": [base_url],
                "api_key": self._bridge.key,
                "context": {"file": file.name},
                "questions": [f"{task.question} {ALONE}" if asked.family in BARE else task.question],
                "model": settings.model.rpartition("/")[2],
                "sub_model": settings.sub_model.rpartition("/")[2],
                "policy": found_from_anywhere(settings.policy),
                "limits": {
                    "turns": settings.turns,
                    "calls": settings.calls,
                    "output_chars": settings.output_chars,
                },
            }
            try:
                if asked.engine not in self._workers:
                    self._workers[asked.engine] = Worker(ENGINES[asked.engine], most_bytes=16 << 30)
                (outcome,) = self._workers[asked.engine].ask(request, self._patience)["outcomes"]
            except EngineDied as error:
                self._workers.pop(asked.engine).close() if asked.engine in self._workers else None
                return None, f"dead: {error}"
        return outcome["answer"], outcome["error"]

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers.values():
            worker.close()


def found_from_anywhere(policy: str) -> str:
    """Return the path of a policy's file in full; the name of a shipped one as it is."""
    return str(Path(policy).resolve()) if policy.endswith(".json") else policy


def wanted_of(
    engines: list[str], families: list[str], sizes: list[int], split: Split, count: int
) -> Iterator[Asked]:
    """Yield what is asked for, so that all engines meet a question one after the other."""
    for family in families:
        lengths = [0] if family == ARTICLES else sizes
        most = min(count, len(questions())) if family == ARTICLES else count
        for chars, seed, engine in itertools.product(lengths, range(most), engines):
            yield Asked(engine, family, chars, seed, split)


def main(
    model: Annotated[str, typer.Option(help="As for rlm-dspy ask --model.")],
    sub_model: Annotated[str, typer.Option(help="Another model for sub-calls.")] = "",
    engine: Annotated[list[str] | None, typer.Option(help=f"Of: {'; '.join(ENGINES)}.")] = None,
    family: Annotated[list[str] | None, typer.Option(help=f"Of: {'; '.join([*FAMILIES, ARTICLES])}.")] = None,
    chars: Annotated[list[int] | None, typer.Option(help="Lengths of generated texts.")] = None,
    split: Annotated[str, typer.Option(help=f"Of: {'; '.join(SPLITS)}.")] = "held_out",
    count: Annotated[int, typer.Option(help="Tasks of each family and length.")] = 20,
    turns: Annotated[int | None, typer.Option(help="Turns at most; what suits the window by default.")] = None,
    policy: Annotated[str, typer.Option(help="The policy of our own engines, a name or a file.")] = "",
    pilot: Annotated[int, typer.Option(help="Runs of each kind before the forecast.")] = 2,
    patience: Annotated[float, typer.Option(help="Seconds after which a run is given up.")] = 1_800,
    retry: Annotated[bool, typer.Option("--retry", help="Ask again what ended in an error.")] = False,
    yes: Annotated[bool, typer.Option(help="Go on after the forecast without asking.")] = False,
) -> None:
    """Ask what has not been asked yet, then write the table."""
    engines, families = engine or ["ours", "dspy.RLM", "rlms", "direct"], family or list(FAMILIES)
    for names, known in ((engines, ENGINES), (families, [*FAMILIES, ARTICLES]), ([split], SPLITS)):
        if unknown := [name for name in names if name not in known]:
            raise typer.BadParameter(f"There is no {unknown[0]!r}. There are: {'; '.join(known)}.")
    lm = choose_model(model).copy(cache=False)
    lm("Say yes.")  # a model that cannot be reached is told of before runs fail one by one
    limits = limits_for(lm, max_iters=turns)
    if policy:
        load_policy(policy)  # one that cannot be read is told of before anything is asked
    settings = Settings(model, sub_model, limits.max_iters, limits.max_llm_calls, limits.max_output_chars, policy)
    others = {sub_model.rpartition("/")[2]: choose_model(sub_model).copy(cache=False)} if sub_model else {}
    named: Any = split
    wanted = list(wanted_of(engines, families, chars or [100_000], named, count))
    with Bridge(lm, others=others) as bridge:
        runs = Runs(settings, bridge, patience, retry=retry)
        try:
            ask_all(runs, runs.left([asked for asked in wanted if asked.seed < pilot]))
            left = runs.left(wanted)
            if left:
                print(forecast(runs.rows, [vars(asked) for asked in left], settings.row()))
                if not yes and not typer.confirm(f"{len(left)} runs are left. Go on?"):
                    raise typer.Exit
                ask_all(runs, left)
        finally:
            runs.close()
            write_report(read_rows())


def ask_all(runs: Runs, wanted: list[Asked]) -> None:
    """Ask, and show each answer in a line."""
    totals: dict[str, float] = defaultdict(float)
    for asked in wanted:
        row = runs.ask(asked)
        totals["cost"] += row["cost"] or 0.0
        print(
            f"{asked.engine:<15} {asked.family:<9} {asked.chars:>11,} #{asked.seed:<3} "
            f"{'right' if row['right'] else row['error'] or 'wrong'}"[:110],
            f"{row['seconds']} s, {row['input_tokens'] + row['output_tokens']:,} tokens, ${totals['cost']:.4f}",
            flush=True,
        )


if __name__ == "__main__":
    running.run(main)
