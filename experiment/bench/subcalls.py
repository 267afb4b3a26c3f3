"""How much of a batch's time is the model's: 1,000 items, 64 at once, an LM that takes 100 ms and costs nothing.

    uv run python experiment/bench/subcalls.py

Prints for each way to ask the seconds, and their ratio to the ideal (items / concurrency x 100 ms). The same
number of prompts goes through `llm_query_batched` of `dspy.RLM`, which has eight workers whatever one asks for.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import dspy

from rlm_dspy import RLM, Limits
from rlm_dspy.interpreters import PythonInterpreter
from rlm_dspy.testing import ScriptedLM

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


def main() -> None:
    slow = ScriptedLM(lambda _: REPLY, seconds=SECONDS)
    limits = Limits(max_llm_calls=ITEMS, max_concurrency=CONCURRENCY)
    signature = "q -> seconds: float, n: int"
    prompts = f"[f'passage {{i}}' for i in range({ITEMS})]"
    ours = {
        "claims.map": f"found = claims.map({prompts})",
        "dspy.Predict(...).map": f"found = dspy.Predict('passage -> claims: list[str]').map({prompts})",
        "llm_query_batched": f"found = llm_query_batched({prompts})",
    }
    ideal = ITEMS / CONCURRENCY * SECONDS
    print(f"{ITEMS:,} items, {CONCURRENCY} at once, {SECONDS * 1000:.0f} ms each: ideal {ideal:.2f} s")
    for name, code in ours.items():
        cpu = time.process_time()
        rlm = RLM(signature, subs=[Claims], sub_lm=slow, limits=limits, policy=None)
        taken = seconds(rlm, code)
        cpu = time.process_time() - cpu
        print(f"rlm_dspy  {name:24} {taken:6.2f} s  ratio {taken / ideal:5.2f}  (CPU {cpu:.2f} s)")
    theirs = dspy.RLM(signature, max_llm_calls=ITEMS, sub_lm=slow)
    taken = seconds(theirs, f"found = llm_query_batched({prompts})", upstream=True)
    print(f"dspy.RLM  {'llm_query_batched':24} {taken:6.2f} s  ratio {taken / ideal:5.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=0.1)
    given = parser.parse_args()
    ITEMS, CONCURRENCY, SECONDS = given.items, given.concurrency, given.seconds
    main()
