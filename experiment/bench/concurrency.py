"""Many runs at once on one event loop, each with a batch of sub-calls: time against the ideal, and memory a run.

The scripted model takes a fixed time for each reply, so the ideal is known: a run makes two turns and one batch,
by default as many sub-calls at once as it has: three replies one after the other.

    python experiment/bench/concurrency.py --runs 200 --interpreter local
    python experiment/bench/concurrency.py --runs 1 --subcalls 200 --at-once 50
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

import dspy

from rlm_dspy import RLM, Limits
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.testing import ScriptedLM

_LOOK_SECONDS = 0.5
INTERPRETERS = {"python": PythonInterpreter, "local": LocalPythonInterpreter}


def turn_of(messages: list[dict[str, str]], subcalls: int) -> str:
    """Ask a batch, then submit."""
    turn = sum(message["role"] == "assistant" for message in messages)
    if turn == 0:
        return f"```python\nfacts = llm_query_batched([f'{{question}} {{i}}' for i in range({subcalls})])\n```"
    return "```python\nSUBMIT(answer=len([fact for fact in facts if fact]))\n```"


def resident_kb(pid: int | str = "self") -> int:
    """Return the memory that a process alone holds, in kB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
    parts = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines()[1:]}
    return parts["Private_Clean"] + parts["Private_Dirty"]


def below(pid: int) -> list[int]:
    """Return the processes that descend from one."""
    found = []
    with contextlib.suppress(OSError):  # threads and processes end while we look
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                for child in (task / "children").read_text(encoding="utf-8").split():
                    found += [int(child), *below(int(child))]
    return found


def workers_kb() -> int:
    """Return the memory that all processes below this one hold for themselves, in kB."""
    total = 0
    for pid in below(os.getpid()):
        with contextlib.suppress(OSError):  # it has ended meanwhile, or is closed to us
            total += resident_kb(pid)
    return total


async def measure(runs: int, subcalls: int, at_once: int, seconds: float, interpreter: str) -> dict[str, Any]:
    """Run them together; look at the memory while all are under way."""
    lm = ScriptedLM(act=lambda said: turn_of(said, subcalls), query=lambda _: "a fact", seconds=seconds)
    limits = Limits(max_llm_calls=subcalls, max_concurrency=at_once)
    rlm = RLM("question -> answer: int", limits=limits, interpreter_factory=INTERPRETERS[interpreter], policy=None)
    seen, over = {"host": 0, "workers": 0, "threads": 0}, threading.Event()

    def look() -> None:
        while not over.wait(_LOOK_SECONDS):
            now = {"host": resident_kb(), "workers": workers_kb(), "threads": threading.active_count()}
            seen.update({name: max(seen[name], value) for name, value in now.items()})

    with dspy.context(lm=lm, max_history_size=0):
        await rlm.acall(question="warm")
        gc.collect()
        before, workers_before, calls = resident_kb(), workers_kb(), len(lm.script.calls)
        threading.Thread(target=look, daemon=True).start()
        began, busy = time.perf_counter(), time.process_time()
        predictions = await asyncio.gather(*(rlm.acall(question=f"q{number}") for number in range(runs)))
        took, busy = time.perf_counter() - began, time.process_time() - busy
        over.set()
    assert [prediction.answer for prediction in predictions] == [subcalls] * runs
    ideal = (2 + math.ceil(subcalls / at_once)) * seconds
    return {
        "runs": runs,
        "sub-calls a run": subcalls,
        "interpreter": interpreter,
        "model calls": len(lm.script.calls) - calls,
        "most at once": lm.script.most_at_once,
        "seconds": round(took, 2),
        "ideal seconds": ideal,
        "ratio": round(took / ideal, 2),
        "CPU seconds of the host": round(busy, 2),
        "host kB a run": (seen["host"] - before) // runs,
        "workers kB a run": (seen["workers"] - workers_before) // runs,
        "threads at most": seen["threads"],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--subcalls", type=int, default=4)
    parser.add_argument("--at-once", type=int, help="sub-calls of a run at once; default: all")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each reply takes")
    parser.add_argument("--interpreter", choices=sorted(INTERPRETERS), default="local")
    given = parser.parse_args()
    at_once = given.at_once or given.subcalls
    measured = asyncio.run(measure(given.runs, given.subcalls, at_once, given.seconds, given.interpreter))
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
