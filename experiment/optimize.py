"""Does optimization help a real model: the embedded one, before and after each optimizer, on held-out tasks.

    uv run --extra embedded python experiment/optimize.py                    # all that is not in the results yet
    uv run --extra embedded python experiment/optimize.py --optimizer trajectories --teacher scripted --count 4
    uv run --extra embedded --group bench python experiment/optimize.py --report

The start is a plain instruction and no demos. Optimizers see training tasks (`split=search`, seed 1) and
development tasks (seed 77); what they found is tried on held-out tasks: other templates, other names, longer
texts. The teacher of a compile is the model itself, or `scripted_teacher.py`, which finds the answers by code.
Every answer goes to `bench/results/optimize.jsonl` as it comes, every compiled program to
`bench/results/optimize/`; a second start goes on where the first one ended.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import dspy
import typer
from scripted_teacher import scripted_teacher
from tasks import Task, one_fact_tasks

from rlm_dspy import RLM, Limits
from rlm_dspy.embedded import embedded_lm
from rlm_dspy.intervals import wilson
from rlm_dspy.optimize import TrajectoryFewShot, compact, save_policy, with_policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).parent
RESULTS = HERE / "bench" / "results" / "optimize.jsonl"
COMPILED = RESULTS.with_suffix("")
REPORT = HERE / "bench" / "OPTIMIZE.md"
SIGNATURE = "context, question -> answer: str"
INSTRUCTIONS = (
    "Answer the question by writing Python for a REPL, one block a turn. "
    "Print what you need to see, then SUBMIT the exact words of the answer."
)
LIMITS = Limits(max_iters=4, max_output_chars=1_500, max_llm_calls=0)
FAMILIES: dict[str, Callable[..., list[Task]]] = {"one fact": one_fact_tasks}
TRAIN_CHARS = 5_000
DEMOS = 8


def ours() -> RLM:
    """Return our RLM with a plain instruction and no demos."""
    rlm = RLM(SIGNATURE, limits=LIMITS, policy=None)
    rlm.act.signature = rlm.act.signature.with_instructions(INSTRUCTIONS)
    return rlm


def upstream() -> dspy.Module:
    """Return `dspy.RLM` with as many turns, as it is."""
    return dspy.RLM(SIGNATURE, max_iters=4, max_output_chars=1_500, interpreter_factory=dspy.LocalInterpreter)


ENGINES: dict[str, Callable[[], Any]] = {"ours": ours, "dspy.RLM": upstream}


def right(example: Any, prediction: Any, trace: Any = None) -> bool:  # noqa: ARG001  # DSPy hands it over
    """Whether the answer is the gold one."""
    return bool(Task("", "", example.answer).is_right(prediction.answer))


def examples(tasks: list[Task]) -> list[dspy.Example]:
    """Return tasks as DSPy's optimizers take them."""
    fields = ({"context": task.context, "question": task.question, "answer": task.answer} for task in tasks)
    return compact(dspy.Example(**each).with_inputs("context", "question") for each in fields)


def plain(program: Any, **_: Any) -> Any:
    return program


def shipped(program: Any, **_: Any) -> Any:
    return with_policy(program, "smollm2-135m-instruct") if isinstance(program, RLM) else program


def bootstrap(program: Any, train: Any, teacher: Any, **_: Any) -> Any:
    optimizer = dspy.BootstrapFewShot(
        metric=right, max_bootstrapped_demos=DEMOS, max_labeled_demos=0, teacher_settings=teacher
    )
    return optimizer.compile(program, trainset=train)


def random_search(program: Any, train: Any, dev: Any, teacher: Any) -> Any:
    optimizer = dspy.BootstrapFewShotWithRandomSearch(
        right,
        max_bootstrapped_demos=DEMOS,
        max_labeled_demos=0,
        num_candidate_programs=4,
        num_threads=1,
        teacher_settings=teacher,
    )
    return optimizer.compile(program, trainset=train, valset=dev)


def mipro(program: Any, train: Any, dev: Any, teacher: Any) -> Any:
    optimizer = dspy.MIPROv2(
        right,
        auto=None,
        num_candidates=4,
        max_bootstrapped_demos=DEMOS,
        max_labeled_demos=0,
        num_threads=1,
        teacher_settings=teacher,
    )
    return optimizer.compile(program, trainset=train, valset=dev, num_trials=8, minibatch=False)


def trajectories(program: Any, train: Any, teacher: Any, **_: Any) -> Any:
    optimizer = TrajectoryFewShot(right, max_demos=DEMOS, teacher_settings=teacher)
    return optimizer.compile(program, trainset=train)


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "none": plain,
    "shipped policy": shipped,
    "bootstrap": bootstrap,
    "random search": random_search,
    "mipro": mipro,
    "trajectories": trajectories,
}
TEACHERS = ("itself", "scripted")


@dataclass(frozen=True)
class Condition:
    """What is measured: an engine, an optimizer, the teacher of its compile, and a family of tasks."""

    engine: str
    optimizer: str
    teacher: str
    family: str

    @property
    def file(self) -> Path:
        """Where the compiled program is kept."""
        return COMPILED / ("_".join(asdict(self).values()).replace(" ", "-") + ".json")


def conditions(**chosen: str | None) -> Iterator[Condition]:
    """Yield the conditions that are asked for; where nothing is compiled there is one teacher."""
    for engine, optimizer, teacher, family in itertools.product(ENGINES, OPTIMIZERS, TEACHERS, FAMILIES):
        condition = Condition(engine, optimizer, teacher, family)
        idle = optimizer in ("none", "shipped policy")
        if (idle and teacher != TEACHERS[0]) or (
            optimizer in ("shipped policy", "trajectories") and engine != "ours"
        ):
            continue
        if all(value in (None, getattr(condition, name)) for name, value in chosen.items()):
            yield condition


def compiled(condition: Condition, lm: Any) -> tuple[Any, float]:
    """Return the program of a condition and what compiling it took, in seconds; from disk if it is there."""
    program = ENGINES[condition.engine]()
    timing = condition.file.with_suffix(".seconds")
    if condition.file.is_file():
        program.load(str(condition.file))
        return program, float(timing.read_text())
    tasks = FAMILIES[condition.family]
    given = {
        "train": examples(tasks(16, TRAIN_CHARS, split="search", seed=1)),
        "dev": examples(tasks(8, TRAIN_CHARS, split="search", seed=77)),
        "teacher": {"lm": scripted_teacher()} if condition.teacher == "scripted" else {},
    }
    started = time.monotonic()
    with dspy.context(lm=lm):
        program = OPTIMIZERS[condition.optimizer](program, **given)
    seconds = time.monotonic() - started
    COMPILED.mkdir(parents=True, exist_ok=True)
    program.save(str(condition.file))
    timing.write_text(f"{seconds:.1f}")
    return program, seconds


def measure(program: Any, task: Task, lm: Any) -> dict[str, Any]:
    """Return what a program did on a task; an error is a wrong answer, and kept."""
    before, started = len(lm.history), time.monotonic()
    row: dict[str, Any] = {"answer": None, "stop": "failed"}
    try:
        with dspy.context(lm=lm):
            prediction = program(context=task.context, question=task.question)
        row = {"answer": str(prediction.answer), "stop": getattr(prediction, "stop", "")}
        row["turns"] = len(prediction.trajectory)
    except Exception as error:  # noqa: BLE001  # the row says what it was
        row["error"] = f"{type(error).__name__}: {str(error)[:300]}"
    calls = [entry.get("messages") or [] for entry in lm.history[before:]]
    row["prompt_chars"] = len((calls and "".join(str(m["content"]) for m in calls[0])) or "")
    return {**row, "right": task.is_right(row["answer"]), "seconds": round(time.monotonic() - started, 2)}


def rows() -> list[dict[str, Any]]:
    """Return the answers so far."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.is_file() else []


def run(condition: Condition, count: int, chars: int, lms: tuple[Any, Any]) -> None:
    """Ask what is not in the results yet."""
    done = {row["task"] for row in rows() if row["condition"] == asdict(condition) and row["chars"] == chars}
    program, seconds = compiled(condition, lms[0])
    tasks = FAMILIES[condition.family](count, chars, split="held_out", seed=5)
    for number, task in enumerate(tasks):
        if number not in done:
            row = {"condition": asdict(condition), "task": number, "chars": chars, "compile_seconds": seconds}
            row |= measure(program, task, lms[1])
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            mark = "right" if row["right"] else "wrong"
            print(f"{condition} {number}: {mark}, {row['answer']!r} for {task.answer!r}", flush=True)


def report() -> None:
    """Write the table and the plot of all answers so far."""
    grouped: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows():
        grouped[(*row["condition"].values(), f"{row['chars']:,}")].append(row)
    head = ["engine", "optimizer", "teacher", "family", "characters", "right", "95 % interval"]
    head += ["first prompt, characters", "seconds a run", "compile, seconds"]
    lines = ["# The embedded model before and after optimization", "", "Made by `experiment/optimize.py`.", ""]
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for condition, answers in grouped.items():
        good, n = sum(row["right"] for row in answers), len(answers)
        low, high = wilson(good, n)
        means = [sum(row[name] for row in answers) / n for name in ("prompt_chars", "seconds", "compile_seconds")]
        cells = [*condition, f"{good} of {n}", f"{low:.0%} to {high:.0%}", *(f"{mean:,.0f}" for mean in means)]
        lines.append("| " + " | ".join(cells) + " |")
    REPORT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    plot(grouped, REPORT.with_suffix(".svg"))


def plot(grouped: dict[tuple[str, ...], list[dict[str, Any]]], path: Path) -> None:
    """Draw the share of right answers with its interval, a bar a condition."""
    import matplotlib as mpl  # noqa: PLC0415  # for the plot only

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(8, 0.45 * len(grouped) + 1.2))
    for at, (condition, answers) in enumerate(reversed(grouped.items())):
        good, n = sum(row["right"] for row in answers), len(answers)
        low, high = wilson(good, n)
        color = "#4c72b0" if condition[0] == "ours" else "#999999"
        axes.barh(at, good / n, color=color)
        axes.plot([low, high], [at, at], color="black", linewidth=1)
    labels = [", ".join(condition) for condition in reversed(grouped)]
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of held-out tasks right, with 95 % interval")
    figure.tight_layout()
    figure.savefig(path)


def main(
    engine: Annotated[str | None, typer.Option(help=f"One of {list(ENGINES)}; all by default.")] = None,
    optimizer: Annotated[str | None, typer.Option(help=f"One of {list(OPTIMIZERS)}.")] = None,
    teacher: Annotated[str | None, typer.Option(help=f"One of {list(TEACHERS)}.")] = None,
    family: Annotated[str | None, typer.Option(help=f"One of {list(FAMILIES)}.")] = None,
    count: Annotated[int, typer.Option(help="Held-out tasks.")] = 24,
    chars: Annotated[int, typer.Option(help="Characters of each held-out text.")] = 1_000_000,
    threads: Annotated[int | None, typer.Option(help="Threads of the model.")] = None,
    policy: Annotated[Path | None, typer.Option(help="Write the policy of the one condition chosen here.")] = None,
    only_report: Annotated[bool, typer.Option("--report", help="Only write the table and the plot.")] = False,
) -> None:
    """Compile, ask, and keep every answer."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    if only_report:
        report()
        return
    lms = tuple(embedded_lm(cache=cached, max_tokens=300, threads=threads) for cached in (True, False))
    for condition in conditions(engine=engine, optimizer=optimizer, teacher=teacher, family=family):
        run(condition, count, chars, (lms[0], lms[1]))
        if policy is not None:
            scores = [float(row["right"]) for row in rows() if row["condition"] == asdict(condition)]
            save_policy(
                compiled(condition, lms[0])[0],
                policy,
                name=policy.stem,
                model=policy.stem,
                optimizer=f"{condition.optimizer}, teacher {condition.teacher}",
                data=f"{condition.family}: 16 tasks of {TRAIN_CHARS} characters, split=search, seed 1",
                seeds=[1, 77, 5],
                scores={f"held out, {chars} characters": scores},
            )


if __name__ == "__main__":
    typer.run(main)
