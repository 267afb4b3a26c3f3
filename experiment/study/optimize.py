"""What policies and optimizers change for a small model: before and after, on held-out questions of four kinds.

    uv run --extra embedded python experiment/study/optimize.py policies     # none, the old one, the shipped one
    uv run --extra embedded python experiment/study/optimize.py candidates   # a new one, on development questions
    uv run --extra embedded python experiment/study/optimize.py kinds        # a policy for each kind of question
    uv run --extra embedded python experiment/study/optimize.py own-teacher  # demos from runs of the model itself
    uv run --extra embedded python experiment/study/optimize.py reflection   # GEPA and MIPROv2, all with the 0.5B
    uv run --extra embedded python experiment/study/optimize.py dspy.RLM     # the same model, budget and questions
    uv run --extra embedded --group bench python experiment/study/optimize.py report

Questions are facts, counts, lists and comparisons over generated texts (`families.py`), each asked in three
wordings (`wordings.py`). Optimizers see the splits `train` and `dev`; what counts is the split `final`: other
templates, names, seeds and wordings, longer texts. Kinds take turns, and wordings too, so an early end leaves
balanced rows; all conditions of a part answer a question before the next one is asked. Every answer goes to
`results/optimize.jsonl` as it comes, every compiled program to `results/optimize/`; a second start goes on where
the first one ended. `articles.py --program results/optimize/NAME.json` asks such a program about articles.
"""

from __future__ import annotations

import functools
import json
import os
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import dspy
import row_file
import starter
import typer
from families import FamilyTask
from optimize_report import REPORT, RESULTS, compiled_file, plot, report, rows
from study_questions import KINDS, questions
from wordings import WORDINGS

from rlm_dspy import RLM, Limits
from rlm_dspy.embedded.engine import embedded_lm
from rlm_dspy.optimize import TrajectoryFewShot, compact, upstream, with_feedback

if TYPE_CHECKING:
    from family_words import Split
    from starter_parts import Kind

Models = Callable[[str, "int | None"], dspy.BaseLM]
"""Gives a model by its name and a seed; with a seed its replies are kept in DSPy's cache."""
SIGNATURE = "context, question -> answer: str"
LIMITS = Limits(max_iters=4, max_output_chars=1_500, max_llm_calls=16)
REPLY_TOKENS = 450
TRAIN, DEV, DEMOS = 12, 4, 4
LARGE, SMALL = "qwen2.5-coder-1.5b", "qwen2.5-coder-0.5b"
FILES = Path(__file__).with_name("policies")
BEFORE = FILES / "small-models-before.json"
POLICY_FILE = Path(__file__).parents[2] / "signatures" / "policies" / "small-coders.json"
POLICIES: dict[str, str | Path | None] = {
    "none": None,
    "before": BEFORE,
    "candidate": FILES / "candidate.json",  # `starter.py` writes it
    "shipped": "small-coders",
}


SHIPPED = ("before", "shipped") if POLICY_FILE.read_bytes() != BEFORE.read_bytes() else ("shipped",)
"""The policy that was shipped when the study began, if it is another now, and the one that is."""


def ours(policy: str | Path | None) -> RLM:
    """Return our RLM."""
    return RLM(SIGNATURE, limits=LIMITS, policy=policy)


def upstream_rlm(_: str | Path | None) -> dspy.Module:
    """Return `dspy.RLM` with the same limits."""
    limits = {"max_iters": LIMITS.max_iters, "max_llm_calls": LIMITS.max_llm_calls}
    limits["max_output_chars"] = LIMITS.max_output_chars
    return dspy.RLM(SIGNATURE, **limits, interpreter_factory=dspy.LocalInterpreter)


ENGINES: dict[str, Callable[[str | Path | None], Any]] = {"ours": ours, "dspy.RLM": upstream_rlm}


def right(example: Any, prediction: Any, trace: Any = None) -> bool:  # noqa: ARG001  # DSPy hands it over
    """Whether the answer is the gold one; several values in any order."""
    values = tuple(example.answer.split(", "))
    task = FamilyTask("", "", example.answer, members=values if len(values) > 1 else ())
    return task.is_right(prediction.answer)


def examples(split: Split, count: int, engine: str) -> list[dspy.Example]:
    """Return questions as DSPy's optimizers take them; to ours with long texts that stay short in prompts."""
    tasks = (question.task for question in questions(split, count))
    fields = ({"context": task.context, "question": task.question, "answer": task.answer} for task in tasks)
    made = [dspy.Example(**each).with_inputs("context", "question") for each in fields]
    return compact(made) if engine == "ours" else made


@dataclass(frozen=True)
class Compile:
    """What an optimizer is given.

    Attributes:
        program: The program to start from.
        engine: Whose program it is.
        lm: The model, also of the optimizer's own calls.
        log_dir: Where its state is kept.
    """

    program: Any
    engine: str
    lm: dspy.BaseLM
    log_dir: Path

    @property
    def train(self) -> list[dspy.Example]:
        """The training questions."""
        return examples("train", TRAIN, self.engine)

    @property
    def dev(self) -> list[dspy.Example]:
        """The questions to choose candidates by."""
        return examples("dev", DEV, self.engine)


def plain(job: Compile) -> Any:
    return job.program


def trajectories(job: Compile) -> Any:
    optimizer = TrajectoryFewShot(right, max_demos=DEMOS, log_dir=job.log_dir)
    return optimizer.compile(job.program, trainset=job.train)


def nearest(job: Compile) -> Any:
    """As many demos a run, the nearest of all that were found by the runs of `trajectories`."""
    job.program.demos_per_run = DEMOS
    optimizer = TrajectoryFewShot(right, max_demos=TRAIN, log_dir=job.log_dir)
    return optimizer.compile(job.program, trainset=job.train)


def bootstrap(job: Compile) -> Any:
    optimizer = dspy.BootstrapFewShot(metric=right, max_bootstrapped_demos=DEMOS, max_labeled_demos=0)
    return optimizer.compile(job.program, trainset=job.train)


def gepa(job: Compile) -> Any:
    optimizer = upstream.GEPA(
        with_feedback(right),
        max_metric_calls=6 * DEV,
        reflection_lm=job.lm,
        num_threads=1,
        seed=0,
        log_dir=str(job.log_dir),
    )
    return optimizer.compile(job.program, trainset=job.train, valset=job.dev)


def mipro(job: Compile) -> Any:
    optimizer = dspy.MIPROv2(
        right,
        prompt_model=job.lm,
        task_model=job.lm,
        auto=None,
        num_candidates=3,
        max_bootstrapped_demos=DEMOS,
        max_labeled_demos=0,
        num_threads=1,
    )
    return optimizer.compile(job.program, trainset=job.train, valset=job.dev, num_trials=4, minibatch=False)


OPTIMIZERS: dict[str, Callable[[Compile], Any]] = {
    "none": plain,
    "trajectories": trajectories,
    "trajectories, nearest": nearest,
    "bootstrap": bootstrap,
    "GEPA": gepa,
    "MIPROv2": mipro,
}


@dataclass(frozen=True)
class Condition:
    """What answers the questions.

    Attributes:
        engine: Whose RLM.
        model: The model of turns, sub-calls, and of the optimizer: its teacher, prompt and reflection model.
        policy: What it starts from: a name of `POLICIES`, or `only` and a kind.
        optimizer: What compiles it.
    """

    engine: str
    model: str
    policy: str
    optimizer: str

    @property
    def name(self) -> str:
        """Its optimizer, else its policy."""
        return self.policy if self.optimizer == "none" else self.optimizer

    @property
    def kind(self) -> Kind | None:
        """The only kind of questions that its policy has runs for and that it is asked, if it is of one kind."""
        return next((kind for kind in KINDS if self.policy == f"only {kind}"), None)

    @property
    def file(self) -> Path:
        """Where the compiled program is kept."""
        return compiled_file(asdict(self))

    @property
    def seed(self) -> int:
        """Keeps its replies apart in DSPy's cache, so that no compile is paid by another; nothing is drawn."""
        return zlib.crc32(self.optimizer.partition(",")[0].encode())


@dataclass(frozen=True)
class Part:
    """A part of the study: conditions that answer the same questions, in turn.

    Attributes:
        conditions: What answers them.
        count: How many questions.
        rounds: In how many wordings each is asked.
        split: Whose questions they are.
    """

    conditions: tuple[Condition, ...]
    count: int
    rounds: int = 1
    split: Split = "final"


PARTS = {
    "candidates": Part(
        tuple(Condition("ours", LARGE, name, "none") for name in ("before", "candidate")), 24, split="dev"
    ),
    "policies": Part(
        tuple(Condition("ours", LARGE, name, "none") for name in ("none", *SHIPPED)), 40, len(WORDINGS)
    ),
    "kinds": Part(tuple(Condition("ours", LARGE, f"only {kind}", "none") for kind in KINDS), 40),
    "own-teacher": Part(
        tuple(
            Condition("ours", LARGE, "none", name)
            for name in ("trajectories", "trajectories, nearest", "bootstrap")
        ),
        40,
    ),
    "reflection": Part(
        tuple(Condition("ours", SMALL, "shipped", name) for name in ("none", "GEPA", "MIPROv2")), 20
    ),
    "dspy.RLM": Part(
        tuple(Condition("dspy.RLM", LARGE, "none", name) for name in ("none", "bootstrap")),
        20,
    ),
}
"""By name. The first 20 and 40 questions are the same in all parts, in the same wordings."""


def start_program(condition: Condition) -> Any:
    """Return the program that a condition starts from: a policy of one kind has those runs of the shipped one."""
    if condition.kind is None:
        return ENGINES[condition.engine](POLICIES[condition.policy])
    program = ours(None)
    program.load_state(starter.program(condition.kind).dump_state())
    return program


def compiled(condition: Condition, models: Models) -> Any:
    """Return the program of a condition; from disk if it is there. What compiling it took is written beside it."""
    program = start_program(condition)
    if condition.optimizer == "none":
        return program
    cost_file = condition.file.with_suffix(".cost.json")
    if not cost_file.is_file():
        condition.file.parent.mkdir(parents=True, exist_ok=True)
        lm, started = models(condition.model, condition.seed), time.monotonic()
        before = len(lm.history)
        job = Compile(program, condition.engine, lm, condition.file.with_suffix(".state"))
        with dspy.context(lm=lm):
            OPTIMIZERS[condition.optimizer](job).save(str(condition.file))
        cost = {"seconds": round(time.monotonic() - started), **_spent(lm.history[before:])}
        cost_file.write_text(json.dumps(cost) + "\n", encoding="utf-8")
    program.load(str(condition.file))
    return program


def _spent(calls: list[dict[str, Any]]) -> dict[str, int]:
    """Return how many calls of a model there were, and their tokens."""
    used = [call.get("usage") or {} for call in calls]
    tokens = {name: sum(each.get(name) or 0 for each in used) for name in ("prompt_tokens", "completion_tokens")}
    return {"calls": len(calls), **tokens}


def measure(program: Any, task: FamilyTask, lm: dspy.BaseLM) -> dict[str, Any]:
    """Return what a program did on a task; an error is a wrong answer, and kept."""
    before, started = len(lm.history), time.monotonic()
    row: dict[str, Any] = {"answer": None, "stop": "failed"}
    try:
        with dspy.context(lm=lm):
            prediction = program(context=task.context, question=task.question)
        row = {"answer": str(prediction.answer)[:200], "stop": getattr(prediction, "stop", "answered")}
        row["code"] = [str(step.get("code"))[:1_000] for step in prediction.trajectory]
    except Exception as error:  # noqa: BLE001  # the row says what it was
        row["error"] = _said(error)
    calls = lm.history[before:]
    first = (calls and calls[0].get("usage")) or {}
    row |= {**_spent(calls), "first_prompt_tokens": first.get("prompt_tokens") or 0}
    return {**row, "right": task.is_right(row["answer"]), "seconds": round(time.monotonic() - started, 1)}


def run(part: Part, count: int, models: Models, kind: str = "") -> None:
    """Ask what is not in the results yet."""
    programs: list[tuple[Condition, Any]] = []
    for condition in part.conditions:
        try:
            programs.append((condition, compiled(condition, models)))
        except Exception as error:  # noqa: BLE001  # an optimizer that fails is a result
            failed: row_file.Row = {"condition": asdict(condition), "number": None}
            if not _done(failed):
                keep(failed | {"error": _said(error)})
    for question in questions(part.split, count, part.rounds):
        if kind not in question.kind:
            continue
        for condition, program in programs:
            if condition.kind not in (None, question.kind):
                continue
            row: row_file.Row = {"condition": asdict(condition), "split": part.split, "number": question.number}
            row |= {"kind": question.kind, "wording": question.wording, "gold": question.task.answer[:200]}
            if not _done(row):
                keep(row | measure(program, question.task, models(condition.model, None)))


def _done(row: row_file.Row) -> bool:
    return any(row.items() <= there.items() for there in rows())


def keep(row: dict[str, Any]) -> None:
    """Write a row and show it."""
    row_file.append(RESULTS, row)
    print(json.dumps({key: value for key, value in row.items() if key != "code"}, ensure_ascii=False), flush=True)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"


def main(
    part: Annotated[str, typer.Argument(help=f"One of {[*PARTS, 'report']}.")],
    count: Annotated[int | None, typer.Option(help="Questions; by default as many as the part has.")] = None,
    threads: Annotated[int, typer.Option(help="Threads of the model.")] = 1,
    kind: Annotated[str, typer.Option(help=f"Only this kind of {[*KINDS]}; all by default.")] = "",
    only: Annotated[list[str] | None, typer.Option(help="Of the part, these optimizers or policies.")] = None,
) -> None:
    """Compile, ask, and keep every answer; then write the table."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    if part != "report" and part not in PARTS:
        raise typer.BadParameter(f"There is {', '.join(PARTS)}, or report, not {part!r}.")
    if part == "report":
        plot(rows(), REPORT.with_suffix(".svg"))
    else:

        @functools.cache
        def models(name: str, seed: int | None) -> dspy.BaseLM:
            settings = {} if seed is None else {"seed": seed}
            return embedded_lm(name, cache=seed is not None, max_tokens=REPLY_TOKENS, threads=threads, **settings)

        chosen = [each for each in PARTS[part].conditions if not only or each.name in only]
        run(replace(PARTS[part], conditions=tuple(chosen)), count or PARTS[part].count, models, kind)
    report(rows(), REPORT)


if __name__ == "__main__":
    typer.run(main)
