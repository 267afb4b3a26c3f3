"""Counts how often runs stay within their forecast: p50 and p95 of tokens, cost and seconds.

The model is scripted: each run draws its number of turns and sub-calls, and the length of their prompts. What it
uses is what the ledger counts. Each run is forecast from all runs before it; the first ten are not counted.

    python experiment/bench/forecasts.py [--runs 40]
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from typing import TYPE_CHECKING

import dspy

from rlm_dspy import RLM, Limits
from rlm_dspy.compute import forecast
from rlm_dspy.report.record import recorded
from rlm_dspy.testing import ScriptedLM

if TYPE_CHECKING:
    from rlm_dspy.report.record import Record

WARM_UP = 10
PRICES = {"scripted/lm": (0.25, 2.0)}


def run(rng: random.Random) -> Record:
    """Run once, with a random number of turns and sub-calls."""
    turns = 1 + min(9, int(rng.lognormvariate(0.8, 0.6)))
    calls, words = int(rng.lognormvariate(1.5, 0.8)), int(rng.lognormvariate(5, 0.7))
    code = (
        f"print(llm_query_batched(['word ' * {words}] * 1 + [f'word {{n}} ' * {words} for n in range({calls})]))"
    )
    act = [f"```python\n{code}\n```"] * turns + ["```python\nSUBMIT(answer='done')\n```"]
    lm = ScriptedLM(act=act, query=lambda _: "reply " * rng.randint(5, 60), seconds=0.005)
    with dspy.context(lm=lm):
        rlm = RLM("context -> answer", limits=Limits(max_llm_calls=10_000, prices=PRICES, max_repetitions=None))
        record, error = recorded(rlm, {"context": "word " * 5_000})
    if error is not None:
        raise error
    return record


def used(record: Record) -> dict[str, float]:
    """Return what a run used, by the names of a forecast."""
    usage = record.usage
    return {
        "tokens": usage.input_tokens + usage.output_tokens,
        "cost": usage.cost or 0.0,
        "seconds": usage.seconds,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=40)
    runs, rng = parser.parse_args().runs, random.Random(7)
    past: list[Record] = [run(rng) for _ in range(WARM_UP)]
    within: Counter[tuple[str, str]] = Counter()
    for _ in range(runs):
        cast = forecast(past)
        past.append(run(rng))
        for name, amount in used(past[-1]).items():
            likely = getattr(cast, name)
            if likely is not None:
                within[name, "p50"] += amount <= likely.p50
                within[name, "p95"] += amount <= likely.p95
    print(f"| of {runs} runs | within p50 | within p95 |\n|---|---|---|")
    for name in ("tokens", "cost", "seconds"):
        print(f"| {name} | {within[name, 'p50']} | {within[name, 'p95']} |")


if __name__ == "__main__":
    main()
