"""Does optimization help a real model: the embedded one, before and after each optimizer, on held-out tasks.

    uv run --extra embedded python experiment/study/optimize.py              # all that is not in the results yet
    uv run --extra embedded python experiment/study/optimize.py --optimizer trajectories --family needle --count 4
    uv run --extra embedded --group bench python experiment/study/optimize.py --report

The start is a plain instruction and no demos. Optimizers see training and development tasks of one family, or of
all four; what they found is tried on held-out tasks (the split `final`): other templates, names and seeds, longer
texts. The teacher of a compile is the model itself, or `scripted_teacher.py`, which finds the answers by code.
Every answer goes to `results/optimize.jsonl` as it comes, every compiled program to
`results/optimize/`; a second start goes on where the first one ended, and several may run at once on
different conditions.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path  # noqa: TC003  # typer reads it
from typing import TYPE_CHECKING, Annotated, Any

import dspy
import row_file
import typer
from families import FamilyTask, make
from optimize_report import REPORT, RESULTS, plot, report, rows
from scripted_teacher import scripted_teacher
from tasks import Task, one_fact_tasks

from rlm_dspy import RLM, Limits
from rlm_dspy.embedded.engine import embedded_lm
from rlm_dspy.optimize import TrajectoryFewShot, compact, save_policy, with_policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from family_words import Split

COMPILED = RESULTS.with_suffix("")
SIGNATURE = "context, question -> answer: str"
OTHER_SIGNATURE = "document, query -> result: str"
INSTRUCTIONS = (
    "Answer the question by writing Python for a REPL, one block a turn. "
    "Print what you need to see, then SUBMIT the exact words of the answer."
)
LIMITS = Limits(max_iters=4, max_output_chars=1_500, max_llm_calls=0)
REPLY_TOKENS = 450
MODEL = "smollm2-135m"
FAMILIES = ("needle", "needles", "table", "count")
ALL = "all"
HELD_OUT: Split = "final"
"""The split that decides; `held_out` was looked at while the teacher's programs were written."""
UNSEEN = "one fact"
"""A family that nothing is trained on (`tasks.py`)."""
FIRST_SEED: dict[Split, int] = {"train": 0, "dev": 1_000, HELD_OUT: 2_000}
TRAIN_CHARS = 5_000
TRAIN, DEV = 12, 2
DEMOS = {ALL: 4}
"""Demos of a compile, by what it is trained on; 3 for a single family."""


def tasks_of(family: str, split: Split, count: int, chars: int) -> list[Task]:
    """Return tasks; of `all`, the families in turn."""
    if family == UNSEEN:
        return one_fact_tasks(count, chars, split="held_out" if split == HELD_OUT else "search", seed=5)
    names = FAMILIES if family == ALL else (family,)
    first = FIRST_SEED[split]
    return [make(names[n % len(names)], first + n, chars, split) for n in range(count)]


def ours(signature: str) -> RLM:
    """Return our RLM with a plain instruction and no demos."""
    rlm = RLM(signature, limits=LIMITS, policy=None)
    rlm.act.signature = rlm.act.signature.with_instructions(INSTRUCTIONS)
    return rlm


def upstream(signature: str) -> dspy.Module:
    """Return `dspy.RLM` with as many turns, as it is."""
    return dspy.RLM(signature, max_iters=4, max_output_chars=1_500, interpreter_factory=dspy.LocalInterpreter)


ENGINES: dict[str, Callable[[str], Any]] = {"ours": ours, "dspy.RLM": upstream}


def right(example: Any, prediction: Any, trace: Any = None) -> bool:  # noqa: ARG001  # DSPy hands it over
    """Whether the answer is the gold one; several values in any order."""
    values = tuple(example.answer.split(", "))
    task = FamilyTask("", "", example.answer, members=values if len(values) > 1 else ())
    return task.is_right(prediction.answer)


def examples(tasks: list[Task], engine: str) -> list[dspy.Example]:
    """Return tasks as DSPy's optimizers take them; to ours with long texts that stay short in prompts."""
    fields = ({"context": task.context, "question": task.question, "answer": task.answer} for task in tasks)
    made = [dspy.Example(**each).with_inputs("context", "question") for each in fields]
    return compact(made) if engine == "ours" else made


def plain(program: Any, **_: Any) -> Any:
    return program


def shipped(program: Any, **_: Any) -> Any:
    return with_policy(program, "small-models") if isinstance(program, RLM) else program


def bootstrap(program: Any, train: Any, teacher: Any, demos: int, **_: Any) -> Any:
    optimizer = dspy.BootstrapFewShot(
        metric=right, max_bootstrapped_demos=demos, max_labeled_demos=0, teacher_settings=teacher
    )
    return optimizer.compile(program, trainset=train)


def random_search(program: Any, train: Any, dev: Any, teacher: Any, demos: int) -> Any:
    optimizer = dspy.BootstrapFewShotWithRandomSearch(
        right,
        max_bootstrapped_demos=demos,
        max_labeled_demos=0,
        num_candidate_programs=2,
        num_threads=1,
        teacher_settings=teacher,
    )
    return optimizer.compile(program, trainset=train, valset=dev)


def mipro(program: Any, train: Any, dev: Any, teacher: Any, demos: int, *, program_aware: bool = True) -> Any:
    optimizer = dspy.MIPROv2(
        right,
        auto=None,
        num_candidates=4,
        max_bootstrapped_demos=demos,
        max_labeled_demos=0,
        num_threads=1,
        teacher_settings=teacher,
    )
    return optimizer.compile(
        program,
        trainset=train,
        valset=dev,
        num_trials=4,
        minibatch=False,
        program_aware_proposer=program_aware,
        data_aware_proposer=program_aware,
    )


def mipro_unaware(program: Any, **given: Any) -> Any:
    """MIPROv2 whose proposer sees neither the program's source nor the data, which may not fit the window."""
    return mipro(program, **given, program_aware=False)


def trajectories(program: Any, train: Any, teacher: Any, demos: int, **_: Any) -> Any:
    optimizer = TrajectoryFewShot(right, max_demos=demos, teacher_settings=teacher)
    return optimizer.compile(program, trainset=train)


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "none": plain,
    "shipped policy": shipped,
    "bootstrap": bootstrap,
    "random search": random_search,
    "mipro": mipro,
    "mipro, unaware": mipro_unaware,
    "trajectories": trajectories,
}
TEACHERS = ("itself", "scripted")


@dataclass(frozen=True)
class Condition:
    """What is measured.

    Attributes:
        engine: Whose RLM.
        optimizer: What compiles it.
        teacher: Whose runs the optimizer learns from.
        trained_on: The family of the training and development tasks, or `all`.
        family: The family of the held-out tasks.
        signature: What the held-out tasks are asked with.
    """

    engine: str
    optimizer: str
    teacher: str
    trained_on: str
    family: str
    signature: str = SIGNATURE

    @property
    def file(self) -> Path:
        """Where the compiled program is kept."""
        name = f"{self.engine}_{self.optimizer}_{self.teacher}_{self.trained_on}"
        return COMPILED / f"{name.replace(', ', '-').replace(' ', '-')}.json"


def conditions() -> Iterator[Condition]:
    """Yield all that is measured, what matters most first."""
    for optimizer in ("none", "trajectories", "bootstrap"):
        teacher = "itself" if optimizer == "none" else "scripted"
        for family in FAMILIES:
            yield Condition("ours", optimizer, teacher, family, family)
    for family in FAMILIES:
        yield Condition("ours", "trajectories", "scripted", ALL, family)
    yield Condition("ours", "trajectories", "scripted", "needle", UNSEEN)
    yield Condition("ours", "trajectories", "scripted", "needle", UNSEEN, OTHER_SIGNATURE)
    yield Condition("ours", "shipped policy", "itself", "needle", UNSEEN)
    for optimizer in ("random search", "mipro"):
        yield Condition("ours", optimizer, "scripted", "needle", "needle")
    for optimizer in ("none", "bootstrap", "random search", "mipro", "mipro, unaware"):
        yield Condition("dspy.RLM", optimizer, "itself" if optimizer == "none" else "scripted", "needle", "needle")
    for optimizer in ("bootstrap", "trajectories"):
        yield Condition("ours", optimizer, "itself", "needle", "needle")


def compiled(condition: Condition, lm: Any) -> tuple[Any, float]:
    """Return the program of a condition and what compiling it took, in seconds; from disk if it is there."""
    program = ENGINES[condition.engine](condition.signature)
    timing = condition.file.with_suffix(".seconds")
    if condition.file.is_file():
        program.load(str(condition.file))
        return program, float(timing.read_text())
    train = examples(tasks_of(condition.trained_on, "train", TRAIN, TRAIN_CHARS), condition.engine)
    dev = examples(tasks_of(condition.trained_on, "dev", DEV, TRAIN_CHARS), condition.engine)
    teacher = {"lm": scripted_teacher()} if condition.teacher == "scripted" else {}
    started = time.monotonic()
    with dspy.context(lm=lm):
        program = OPTIMIZERS[condition.optimizer](
            ENGINES[condition.engine](SIGNATURE),
            train=train,
            dev=dev,
            teacher=teacher,
            demos=DEMOS.get(condition.trained_on, 3),
        )
    seconds = time.monotonic() - started
    COMPILED.mkdir(parents=True, exist_ok=True)
    timing.write_text(f"{seconds:.1f}")
    program.save(str(condition.file))
    return compiled(condition, lm)


def measure(program: Any, task: Task, lm: Any, signature: str) -> dict[str, Any]:
    """Return what a program did on a task; an error is a wrong answer, and kept."""
    inputs, output = (part.strip() for part in signature.split("->"))
    context, question = (name.strip() for name in inputs.split(","))
    before, started = len(lm.history), time.monotonic()
    row: dict[str, Any] = {"answer": None, "stop": "failed"}
    try:
        with dspy.context(lm=lm):
            prediction = program(**{context: task.context, question: task.question})
        answer = str(prediction[output.partition(":")[0]])[:200]
        row = {"answer": answer, "stop": getattr(prediction, "stop", ""), "turns": len(prediction.trajectory)}
    except Exception as error:  # noqa: BLE001  # the row says what it was
        row["error"] = _said(error)
    calls = lm.history[before:]
    row["calls"] = len(calls)
    row["prompt_chars"] = sum(len(str(m["content"])) for m in (calls and calls[0].get("messages")) or ())
    return {**row, "right": task.is_right(row["answer"]), "seconds": round(time.monotonic() - started, 2)}


def run(condition: Condition, count: int, chars: int, lms: tuple[Any, Any]) -> None:
    """Ask what is not in the results yet."""
    done = {row["task"] for row in rows() if row["condition"] == asdict(condition) and row["chars"] == chars}
    if len(done) >= count or None in done:
        return
    try:
        program, seconds = compiled(condition, lms[0])
    except Exception as error:  # noqa: BLE001  # an optimizer that fails is a result
        keep({"condition": asdict(condition), "task": None, "chars": chars, "error": _said(error)})
        return
    for number, task in enumerate(tasks_of(condition.family, HELD_OUT, count, chars)):
        if number not in done:
            row = {"condition": asdict(condition), "task": number, "chars": chars, "compile_seconds": seconds}
            row |= measure(program, task, lms[1], condition.signature)
            keep({**row, "gold": task.answer[:200]})


def keep(row: dict[str, Any]) -> None:
    """Write a row and show it."""
    row_file.append(RESULTS, row)
    print(json.dumps(row, ensure_ascii=False), flush=True)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"


def write_policy(condition: Condition, path: Path, chars: int, lm: Any) -> None:
    """Write the policy of a condition, with what it scored."""
    mine = [row for row in rows() if row["condition"]["trained_on"] == condition.trained_on]
    mine = [
        row for row in mine if all(row["condition"][n] == asdict(condition)[n] for n in ("engine", "optimizer"))
    ]
    scores: dict[str, list[float]] = {}
    for row in mine:
        where = (
            f"{row['condition']['family']}, {row['condition']['signature']}, held out, {row['chars']} characters"
        )
        scores.setdefault(where, []).append(float(row["right"]))
    save_policy(
        compiled(condition, lm)[0],
        path,
        name=path.stem,
        model=lm.model.rpartition("/")[2],
        optimizer=f"{condition.optimizer}, teacher {condition.teacher}",
        data=f"{condition.trained_on}: {TRAIN} tasks of {TRAIN_CHARS} characters (families.py, train)",
        seeds=[FIRST_SEED["train"]],
        scores=scores,
        made_by="experiment/study/optimize.py",
        held_out=f"seeds from {FIRST_SEED[HELD_OUT]}, {chars} characters",
    )


def main(
    engine: Annotated[str | None, typer.Option(help=f"One of {list(ENGINES)}; all by default.")] = None,
    optimizer: Annotated[str | None, typer.Option(help=f"One of {list(OPTIMIZERS)}.")] = None,
    teacher: Annotated[str | None, typer.Option(help=f"One of {list(TEACHERS)}.")] = None,
    trained_on: Annotated[str | None, typer.Option(help=f"One of {[*FAMILIES, ALL]}.")] = None,
    family: Annotated[str | None, typer.Option(help=f"Of the held-out tasks: {[*FAMILIES, UNSEEN]}.")] = None,
    count: Annotated[int, typer.Option(help="Held-out tasks.")] = 20,
    chars: Annotated[int, typer.Option(help="Characters of each held-out text.")] = 1_000_000,
    threads: Annotated[int | None, typer.Option(help="Threads of the model.")] = None,
    policy: Annotated[
        Path | None, typer.Option(help="Write the policy of the first condition chosen here.")
    ] = None,
    only_report: Annotated[bool, typer.Option("--report", help="Only write the table and the plot.")] = False,
) -> None:
    """Compile, ask, and keep every answer."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    if only_report:
        report(rows(), REPORT)
        plot(rows(), REPORT.with_suffix(".svg"))
        return
    wanted = {
        "engine": engine,
        "optimizer": optimizer,
        "teacher": teacher,
        "trained_on": trained_on,
        "family": family,
    }
    chosen = [each for each in conditions() if all(v in (None, getattr(each, name)) for name, v in wanted.items())]
    lms = tuple(
        embedded_lm(MODEL, cache=cached, max_tokens=REPLY_TOKENS, threads=threads, slots=1)
        for cached in (True, False)
    )
    for condition in chosen:
        run(condition, count, chars, (lms[0], lms[1]))
    if policy is not None and chosen:
        write_policy(chosen[0], policy, chars, lms[0])


if __name__ == "__main__":
    typer.run(main)
