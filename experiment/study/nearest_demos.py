"""Are the nearest demos of a pool better than fixed ones? The embedded model on held-out tasks of four families.

    uv run --extra embedded python experiment/study/nearest_demos.py    # what is not in the results yet
    uv run --extra embedded python experiment/study/nearest_demos.py --model qwen2.5-coder-1.5b --count 10

Both arms show the same number of demos, found by the same optimizer in the same runs: those that
`TrajectoryFewShot` chooses of all, or for each run the nearest of a pool. Every answer goes to
`results/nearest_demos.jsonl` as it comes; a second start goes on where the first one ended.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import row_file
import typer
from optimize import (
    ALL,
    FAMILIES,
    HELD_OUT,
    REPLY_TOKENS,
    SIGNATURE,
    TRAIN_CHARS,
    examples,
    measure,
    ours,
    right,
    tasks_of,
)
from scripted_teacher import scripted_teacher

from rlm_dspy.embedded.engine import embedded_lm
from rlm_dspy.optimize import TrajectoryFewShot
from rlm_dspy.optimize.statistics import wilson

if TYPE_CHECKING:
    from rlm_dspy import RLM

RESULTS = Path(__file__).with_name("results") / "nearest_demos.jsonl"
ARMS = ("fixed", "nearest")


def compiled(arm: str, demos: int, pool: int) -> RLM:
    """Return a program with the demos of an arm; the teacher is a script, so this takes seconds."""
    program = ours(SIGNATURE)
    program.demos_per_run = demos if arm == "nearest" else None
    optimizer = TrajectoryFewShot(
        right,
        max_demos=pool if arm == "nearest" else demos,
        max_chars=4_000 * demos,
        teacher_settings={"lm": scripted_teacher()},
    )
    train = examples(tasks_of(ALL, "train", pool, TRAIN_CHARS), "ours")
    result: RLM = optimizer.compile(program, trainset=train)
    return result


def report(rows: list[row_file.Row]) -> None:
    """Print right answers, their 95 % interval and the seconds of a run, by model, arm and family."""
    groups: dict[tuple[str, ...], list[row_file.Row]] = {}
    for row in rows:
        for family in (row["family"], ALL):
            groups.setdefault((row["model"], str(row["demos"]), row["arm"], family), []).append(row)
    print("| model | demos | arm | family | right | 95 % | seconds |\n|---|---|---|---|---|---|---|")
    for key, of_key in sorted(groups.items()):
        hits, seconds = sum(row["right"] for row in of_key), sum(row["seconds"] for row in of_key)
        low, high = wilson(hits, len(of_key))
        told = (*key, f"{hits} of {len(of_key)}", f"{low:.0%} to {high:.0%}", f"{seconds / len(of_key):.0f}")
        print(f"| {' | '.join(told)} |")


def main(
    model: Annotated[
        str, typer.Option(help="A name that `rlm-dspy models` lists, or a GGUF file.")
    ] = "smollm2-135m",
    demos: Annotated[int, typer.Option(help="Demos that a run shows.")] = 2,
    pool: Annotated[int, typer.Option(help="Training tasks, and demos to choose from.")] = 24,
    count: Annotated[int, typer.Option(help="Held-out tasks of each family.")] = 10,
    chars: Annotated[int, typer.Option(help="Characters of each held-out text.")] = 1_000_000,
    threads: Annotated[int | None, typer.Option(help="Threads of the model.")] = None,
) -> None:
    """Ask both arms the same tasks in turn, keep every answer, and print the table."""
    lm = embedded_lm(model, cache=False, max_tokens=REPLY_TOKENS, threads=threads, slots=1)
    programs = {arm: compiled(arm, demos, pool) for arm in ARMS}
    for family in FAMILIES:
        for number, task in enumerate(tasks_of(family, HELD_OUT, count, chars)):
            for arm, program in programs.items():
                what = {"model": model, "demos": demos, "pool": pool, "chars": chars, "arm": arm}
                what |= {"family": family, "task": number}
                if not any(what.items() <= row.items() for row in row_file.read(RESULTS)):
                    row = {**what, **measure(program, task, lm, SIGNATURE), "gold": task.answer[:200]}
                    row_file.append(RESULTS, row)
                    print(json.dumps(row, ensure_ascii=False), flush=True)
    report(row_file.read(RESULTS))


if __name__ == "__main__":
    typer.run(main)
