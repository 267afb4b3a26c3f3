"""Runs a second with one process and with several, and who used the processors meanwhile.

Each process makes its share of the runs on one event loop: five turns of a scripted model that answers at once, so
that nothing but computing takes time. Rows are kept in a file, and those that it has are not measured again. What
workers used is what the machine used, less hosts and the programs that ran before: only an idle machine tells it.

    python experiment/bench/throughput.py --runs 200 --processes 1 2 --repetitions 3
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dspy
from processes import cpu_of

from rlm_dspy import RLM
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.testing import ScriptedLM

HERE = Path(__file__).parent
INTERPRETERS = {"python": PythonInterpreter, "local": LocalPythonInterpreter}
TURNS, AT_ONCE = 5, 16
_NUMBERS = itertools.count()
CONTEXT = "".join(f"line {number}: a fact of number {number * 7}\n" for number in range(3_000))


def turn_of(messages: list[dict[str, str]]) -> str:
    """Look at four parts, then submit; no two runs write the same code."""
    turn = sum(message["role"] == "assistant" for message in messages) + 1
    if turn < TURNS:
        code = f"part{turn} = context[{turn * 100}:][:100]\nprint(part{turn})"
    else:
        code = "SUBMIT(answer=part1[:20])"
    return f"Part {turn}.\n\n```python\n{code}  # {next(_NUMBERS)}\n```"


async def share(runs: int, interpreter: str) -> None:
    """Make some runs, `AT_ONCE` at a time."""
    rlm = RLM("context, question -> answer", interpreter_factory=INTERPRETERS[interpreter], policy=None)
    room = asyncio.Semaphore(AT_ONCE)

    async def run(number: int) -> str:
        async with room:
            return str((await rlm.acall(context=CONTEXT, question=f"q{number}")).answer)

    with dspy.context(lm=ScriptedLM(act=turn_of), max_history_size=0):
        await run(-1)
        print("ready", flush=True)
        sys.stdin.readline()
        answers = await asyncio.gather(*map(run, range(runs)))
    assert answers == [CONTEXT[100:120]] * runs
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(used.ru_utime + used.ru_stime, flush=True)


def busy_seconds() -> float:
    """Return the CPU seconds of the machine so far, those of waiting left out."""
    user, nice, system, _idle, _iowait, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def others() -> dict[int, float]:
    """Return the CPU seconds of each process of the machine, with children that it has waited for."""
    return {int(entry.name): cpu_of(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()}


def measure(runs: int, processes: int, interpreter: str) -> dict[str, Any]:
    """Make the runs in so many processes."""
    elsewhere = others()
    command = [sys.executable, __file__, "--interpreter", interpreter, "--share", str(runs // processes)]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
        for _ in range(processes)
    ]
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()
    before = {child.pid: cpu_of(child.pid) for child in children}
    elsewhere = {pid: cpu_of(pid) for pid in elsewhere}
    busy, began = busy_seconds(), time.perf_counter()
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    hosts = 0.0
    for child in children:
        assert child.stdout is not None
        hosts += float(child.stdout.readline()) - before[child.pid]
    took, busy = time.perf_counter() - began, busy_seconds() - busy
    used_elsewhere = sum(max(0.0, cpu_of(pid) - seconds) for pid, seconds in elsewhere.items())
    for child in children:
        child.communicate()
    cores = os.cpu_count() or 1
    return {
        "interpreter": interpreter,
        "processes": processes,
        "runs": runs,
        "seconds": round(took, 2),
        "runs a second": round(runs / took, 1),
        "cores busy, %": round(100 * busy / (cores * took)),
        "CPU ms a run: hosts": round(1e3 * hosts / runs, 1),
        "CPU ms a run: fork servers, workers, copies": round(1e3 * (busy - used_elsewhere - hosts) / runs, 1),
        "CPU ms a run: other programs": round(1e3 * used_elsewhere / runs, 1),
        "load before": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    """Measure what the file has not, and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--interpreter", choices=sorted(INTERPRETERS), action="append")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "throughput.jsonl")
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    chosen = given.interpreter or sorted(INTERPRETERS)
    if given.share is not None:
        asyncio.run(share(given.share, chosen[0]))
        return
    kept = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    for interpreter in chosen:
        for _ in range(given.repetitions):
            for processes in given.processes:
                asked = {"interpreter": interpreter, "processes": processes, "runs": given.runs}
                have = sum(asked.items() <= row.items() for row in kept)
                if have < given.repetitions:
                    kept.append(measure(given.runs, processes, interpreter))
                    with given.out.open("a") as file:
                        file.write(json.dumps(kept[-1]) + "\n")
    print("| " + " | ".join(kept[0]) + " |\n" + "|---" * len(kept[0]) + "|")
    for row in kept:
        print("| " + " | ".join(map(str, row.values())) + " |")


if __name__ == "__main__":
    main()
