"""Compares plain runs with `direct_below`, `votes` and a cascade, on the same held-out tasks with any model.

    uv run --extra embedded python experiment/bench/compute.py --model qwen2.5-coder-1.5b --count 20
    uv run --extra embedded python experiment/bench/compute.py --report

The tasks are generated (`families.py`, split `held_out`): short ones, which one call can hold, and long ones. Each
row goes to `results/compute.jsonl` as it comes; a second start goes on where the first one ended. The order of the
ways changes from task to task, and DSPy's cache is off. `--cheap` names the model that the cascade asks first.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import dspy
import typer

from rlm_dspy import RLM, Limits
from rlm_dspy.compute import Compute
from rlm_dspy.models import choose_model

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "study")]
import row_file  # noqa: E402  # scripts of this folder are run, not installed
from families import make  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

RESULTS = HERE / "results" / "compute.jsonl"
FAMILIES = ("needle", "table", "count")
SIZES = (2_000, 60_000)
DIRECT_TOKENS = 1_500
WAYS = ("plain", "direct", "votes", "doubtful", "cascade")


def way(name: str, cheap: dspy.LM | None) -> Compute:
    """Return the options of a way."""
    return {
        "plain": Compute(),
        "direct": Compute(direct_below=DIRECT_TOKENS),
        "votes": Compute(votes=3),
        "doubtful": Compute(votes=3, vote_if="doubtful"),
        "cascade": Compute(cheap_lm=cheap),
    }[name]


def planned(ways: list[str], count: int) -> Iterator[tuple[str, str, int, int]]:
    """Yield way, family, size and seed of each run; the ways of a task follow each other."""
    for seed, family, chars in itertools.product(range(count), FAMILIES, SIZES):
        for place in range(len(ways)):
            yield ways[(place + seed) % len(ways)], family, chars, seed


def run(name: str, family: str, chars: int, seed: int, cheap: dspy.LM | None) -> dict[str, Any]:
    """Answer a task, and return the row."""
    task = make(family, seed, chars, "held_out")
    started, error = time.monotonic(), ""
    prediction = dspy.Prediction(answer=None, stop="failed", usage={}, sources={})
    try:
        rlm = RLM("context, question -> answer: str", compute=way(name, cheap), limits=Limits(max_iters=6))
        prediction = rlm(context=task.context, question=task.question)
    except Exception as raised:  # noqa: BLE001 (the next task is run all the same)
        error = f"{type(raised).__name__}: {raised}"
    usage = prediction.usage
    return {
        "way": name,
        "family": family,
        "chars": chars,
        "seed": seed,
        "answer": prediction.answer,
        "right": prediction.answer is not None and task.is_right(prediction.answer),
        "stop": prediction.stop,
        "agreement": prediction.get("agreement", {}).get("agreeing"),
        "tokens": usage.get("input_tokens", 0) + usage.get("output_tokens", 0),
        "seconds": round(time.monotonic() - started, 2),
        "error": error,
    }


def report() -> None:
    """Print accuracy, tokens and seconds of each way, by size, over the tasks that all of them have run."""
    rows = row_file.read(RESULTS)
    tasks: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        tasks[row["model"], row["family"], row["chars"], row["seed"]][row["way"]] = row
    ways = [name for name in WAYS if any(row["way"] == name for row in rows)]
    whole = {key: found for key, found in tasks.items() if found.keys() == set(ways)}
    print("| model | characters | way | tasks | right | tokens | seconds |\n|---|---|---|---|---|---|---|")
    for (model, chars), name in itertools.product(dict.fromkeys((key[0], key[2]) for key in whole), ways):
        of_way = [found[name] for key, found in whole.items() if (key[0], key[2]) == (model, chars)]
        right, count = sum(row["right"] for row in of_way), len(of_way)
        tokens, seconds = (sum(row[unit] for row in of_way) / count for unit in ("tokens", "seconds"))
        print(f"| {model} | {chars:,} | {name} | {count} | {right / count:.0%} | {tokens:,.0f} | {seconds:.0f} |")


def main(
    model: Annotated[str, typer.Option(help="As for `rlm-dspy ask`.")] = "",
    cheap: Annotated[str, typer.Option(help="The model that the cascade asks first.")] = "",
    count: Annotated[int, typer.Option(help="Seeds of each family and size.")] = 10,
    only_report: Annotated[bool, typer.Option("--report", help="Print the table of the rows.")] = False,
) -> None:
    """Run what is missing, then print the table."""
    if not only_report:
        # With a cache, the answers of one way would cost the next one nothing.
        lm = choose_model(model or None).copy(cache=False)
        cheap_lm = choose_model(cheap).copy(cache=False) if cheap else None
        ways = [name for name in WAYS if name != "cascade" or cheap_lm]
        keys = ("model", "way", "family", "chars", "seed")
        done = {tuple(row[key] for key in keys) for row in row_file.read(RESULTS)}
        for plan in planned(ways, count):
            if (lm.model, *plan) not in done:
                with dspy.context(lm=lm):
                    row = {"model": lm.model, **run(*plan, cheap_lm)}
                row_file.append(RESULTS, row)
                print(row["way"], row["family"], row["chars"], row["right"], row["seconds"], flush=True)
    report()


if __name__ == "__main__":
    typer.run(main)
