"""Bytes of a trace and time per turn: `tracing.autolog()` on RLM, plain `mlflow.dspy.autolog()` on `dspy.RLM`.

    uv run python experiment/bench/tracing.py

Both play the same script: 20 turns that print 4,000 characters each of a context of 10 million, one of them with a
batch of 10 sub-calls. Models answer at once, so the difference to the same run without tracing is what tracing
takes; the store is a SQLite file. Each way has a process of its own, as MLflow's settings are read once. The rows
go to `results/tracing.json`, and `side_by_side.py` makes a table of them.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = Path(__file__).parent / "results" / "tracing.json"
TURNS, PRINTED, RUNS = 20, 4_000, 5
WAYS = ("ours", "ours, mlflow.dspy.autolog()", "dspy.RLM, mlflow.dspy.autolog()")


def codes() -> list[str]:
    """Return the code of each turn."""
    turns = [f"print(context[{n * PRINTED}:{(n + 1) * PRINTED}])" for n in range(TURNS - 1)]
    turns[5] += "\nanswers = llm_query_batched([f'about part {n}?' for n in range(10)])"
    return [*turns, "SUBMIT(answer='done')"]


def program(way: str) -> tuple[Any, Callable[[str], str]]:
    """Return a module, and what writes code as its model would."""
    import dspy

    from rlm_dspy import RLM, Limits
    from rlm_dspy.interpreters import LocalPythonInterpreter

    given: dict[str, Any] = {"interpreter_factory": LocalPythonInterpreter}
    if way.startswith("dspy.RLM"):
        form = "[[ ## reasoning ## ]]\nNext.\n\n[[ ## code ## ]]\n```python\n{}\n```\n\n[[ ## completed ## ]]"
        return dspy.RLM("context, question -> answer", max_iters=TURNS, **given), form.format
    limits = Limits(max_iters=TURNS)
    return RLM("context, question -> answer", limits=limits, **given), "Next.\n```python\n{}\n```".format


def measure(way: str) -> dict[str, Any]:
    """Return seconds per turn with and without tracing, and the bytes of a trace."""
    import dspy

    from rlm_dspy import tracing
    from rlm_dspy.testing import ScriptedLM

    module, form = program(way)
    context = "".join(f"line {n:>9} of a long text that is read in parts\n" for n in range(200_000))

    def seconds() -> float:
        replies = iter(codes())
        lm = ScriptedLM(lambda m: "yes" if m[-1]["content"].startswith("about part") else form(next(replies)))
        began = time.perf_counter()
        with dspy.context(lm=lm):
            module(context=context, question="What is it about?")
        return (time.perf_counter() - began) / TURNS

    seconds()
    plain = statistics.median(seconds() for _ in range(RUNS))
    import mlflow

    tracing.autolog(store=f"sqlite:///{tempfile.mkdtemp()}/mlflow.db")
    if "mlflow" in way:
        tracing.autolog(disable=True)
        mlflow.dspy.autolog()
    seconds()
    mlflow.flush_trace_async_logging()
    traced = statistics.median(seconds() for _ in range(RUNS))
    began = time.perf_counter()
    mlflow.flush_trace_async_logging()
    flushed = time.perf_counter() - began
    trace = mlflow.search_traces(return_type="list", max_results=1)[0]
    size = json.loads(trace.info.trace_metadata["mlflow.trace.sizeStats"])
    return {
        "way": way,
        "ms per turn, untraced": round(plain * 1000, 2),
        "ms per turn, traced": round(traced * 1000, 2),
        "ms per turn, tracing": round((traced - plain) * 1000, 2),
        "bytes of a trace": size["total_size_bytes"],
        "spans": size["num_spans"],
        "seconds to store the last": round(flushed, 2),
    }


def measure_all() -> None:
    """Measure every way, each in a process of its own, and keep the rows."""
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "MLFLOW_DISABLE_TELEMETRY": "true"}
    results = []
    for way in WAYS:
        command = [sys.executable, __file__, way]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
        print(results[-1], flush=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def report_lines() -> list[str]:
    """Return the section of the report, from the rows that were kept; none if there are none."""
    if not RESULTS.is_file():
        return []
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))
    heads = list(rows[0])
    shown = [[each if isinstance(each, str) else f"{each:,}" for each in row.values()] for row in rows]
    says = f"{TURNS} turns that print {PRINTED:,} characters each of a context of ten million, 10 sub-calls; a "
    return [
        "",
        "## Cost of tracing",
        "",
        f"{says}model that answers at once, in the process, and MLflow's SQLite store.",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *shown)),
    ]


def main() -> None:
    """Measure one way, and print the row; or all of them."""
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
    else:
        measure_all()


if __name__ == "__main__":
    main()
