"""How much of a batch's time is the model's: 1,000 items, 64 at once, an LM that takes 100 ms and costs nothing.

    uv run python experiment/bench/subcalls.py

Prints for each way to ask the seconds, and their ratio to the ideal (items / concurrency x 100 ms). The same
number of items goes through a bare `dspy.Predict` in as many threads, without ledger, cache, trace or REPL: that
is what DSPy itself takes of this machine. And the same number of prompts goes through `llm_query_batched` of
`dspy.RLM`, which has eight workers whatever one asks for. Each way is taken `--rounds` times in turn; medians are
told.
"""

from __future__ import annotations

import argparse
import contextvars
import functools
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import dspy

from rlm_dspy import RLM, Limits
from rlm_dspy.interpreters import PythonInterpreter
from rlm_dspy.testing import ScriptedLM

if TYPE_CHECKING:
    from collections.abc import Callable

REPLY = '[[ ## claims ## ]]\n["one", "two"]\n\n[[ ## completed ## ]]'
BLOCK = "```python\n{}\n```"


class Claims(dspy.Signature):
    """List the claims the passage makes."""

    passage: str = dspy.InputField()
    claims: list[str] = dspy.OutputField()


def root(code: str, upstream: bool) -> ScriptedLM:
    """Return a scripted model that writes `code` once."""
    reply = BLOCK.format(code)
    if upstream:
        reply = f"[[ ## reasoning ## ]]\nGo.\n\n[[ ## code ## ]]\n{reply}\n\n[[ ## completed ## ]]"
    return ScriptedLM(lambda _: reply)


def seconds(rlm: dspy.Module, code: str, *, upstream: bool = False) -> float:
    """Return how long the code takes, as the code itself sees it."""
    timed = f"import time\nbegun = time.time()\n{code}\nSUBMIT(seconds=time.time() - begun, n=len(found))"
    with dspy.context(lm=root(timed, upstream), interpreter_factory=PythonInterpreter):
        prediction: Any = rlm(q="?")
    assert prediction.n == ITEMS, prediction
    return float(prediction.seconds)


def bare(lm: dspy.LM) -> float:
    """Return how long a bare predictor takes in a pool of threads."""
    predict = dspy.Predict(Claims)
    with dspy.context(lm=lm), ThreadPoolExecutor(CONCURRENCY) as pool:
        present = contextvars.copy_context()
        begun = time.time()
        list(pool.map(lambda i: present.copy().run(predict, passage=f"passage {i}"), range(ITEMS)))
        return time.time() - begun


def ways() -> dict[str, Callable[[], float]]:
    """Return each way to ask, by name."""
    slow = ScriptedLM(lambda _: REPLY, seconds=SECONDS)
    limits = Limits(max_llm_calls=ITEMS, max_concurrency=CONCURRENCY)
    signature = "q -> seconds: float, n: int"
    prompts = f"[f'passage {{i}}' for i in range({ITEMS})]"
    ours = {
        "claims.map": f"found = claims.map({prompts})",
        "dspy.Predict(...).map": f"found = dspy.Predict('passage -> claims: list[str]').map({prompts})",
        "llm_query_batched": f"found = llm_query_batched({prompts})",
    }

    def run(code: str) -> float:
        return seconds(RLM(signature, subs=[Claims], sub_lm=slow, limits=limits, policy=None), code)

    def theirs() -> float:
        rlm = dspy.RLM(signature, max_llm_calls=ITEMS, sub_lm=slow)
        return seconds(rlm, f"found = llm_query_batched({prompts})", upstream=True)

    return {
        "bare dspy.Predict": lambda: bare(slow),
        **{f"rlm_dspy {name}": functools.partial(run, code) for name, code in ours.items()},
        "dspy.RLM llm_query_batched": theirs,
    }


def main(rounds: int) -> None:
    taken: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for name, ask in ways().items():
            cpu = time.process_time()
            wall = ask()
            taken.setdefault(name, []).append((wall, time.process_time() - cpu))
    ideal = ITEMS / CONCURRENCY * SECONDS
    print(f"{ITEMS:,} items, {CONCURRENCY} at once, {SECONDS * 1000:.0f} ms each: ideal {ideal:.2f} s")
    for name, times in taken.items():
        wall, cpu = (statistics.median(each) for each in zip(*times, strict=True))
        least = min(each for each, _ in times)
        print(
            f"{name:32} {wall:6.2f} s  ratio {wall / ideal:5.2f}  (best {least / ideal:5.2f})  "
            f"CPU {cpu / ITEMS * 1000:.2f} ms an item"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    ITEMS, CONCURRENCY, SECONDS = given.items, given.concurrency, given.seconds
    main(given.rounds)
