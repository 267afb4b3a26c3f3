"""The same work through every RLM library, side by side: mechanics with a scripted model over real HTTP.

    uv run --extra embedded --extra rlms --group bench python experiment/bench/side_by_side.py
    uv run ... experiment/bench/side_by_side.py --engine rlms --only "long run"

Every row goes to `results/side_by_side.jsonl` as it comes; a second start goes on where the first one ended, and
`--again` measures anew. `RESULTS.md` and the plots are made from the rows. Libraries that are not part of this
project are installed, each in an environment of its own, below `~/.cache/rlm-bench` (or `RLM_BENCH_CACHE`).
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import tracing
import typer
from measures import Bench, Measure, every, trial
from processes import ENGINES, Engine, EngineDied, scripted_server
from side_by_side_readme import write_short_form
from side_by_side_report import grouped, write_report

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "side_by_side.jsonl"
Row = dict[str, Any]
_PATH = re.compile(re.escape(tempfile.gettempdir()) + r"/[^\s'\"]*")


def read_rows() -> list[Row]:
    """Return the rows so far."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def key_of(row: Row) -> tuple[str, str, str]:
    """Return what a row is about."""
    return row["engine"], row["measure"], row["setting"]


def machine() -> Row:
    """Return what tells this machine and this checkout from others."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, check=False)
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "commit": git.stdout.decode().strip(),
    }


def about(bench: Bench, engine: Engine) -> Row:
    """Return what an engine says of itself, and why it cannot run if it cannot."""
    try:
        return trial(bench, engine)
    except (EngineDied, subprocess.CalledProcessError) as error:
        return {"failed": str(error)[:400]}


def measured(bench: Bench, engine: Engine, measure: Measure, setting: str) -> Row:
    """Return one row; an engine that dies is one too."""
    load = os.getloadavg()[0]
    started = time.monotonic()
    try:
        values = measure.run(bench, engine, setting)
    except EngineDied as error:
        values = {"failed": str(error)[:300]}
    return {
        "engine": engine.name,
        "measure": measure.name,
        "setting": setting,
        **values,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "took": round(time.monotonic() - started, 1),
        "load_before": round(load, 2),
    }


def main(
    engine: Annotated[list[str] | None, typer.Option(help="Only these; see the table for names.")] = None,
    only: Annotated[str, typer.Option(help="Only measures with this in their name or setting.")] = "",
    heavy: Annotated[bool, typer.Option(help="Inputs of 1 GB too; needs 20 GB of memory.")] = False,
    again: Annotated[bool, typer.Option(help="Measure anew what there is already.")] = False,
    report: Annotated[bool, typer.Option(help="Only write the report from the rows.")] = False,
) -> None:
    """Measure what has not been measured yet, then write the tables and plots."""
    chosen = [ENGINES[name] for name in engine or ENGINES]
    if not report:
        run_all(chosen, only, heavy=heavy, again=again)
        if not engine and only in "cost of tracing" and (again or not tracing.RESULTS.exists()):
            tracing.measure_all()
    write_report(read_rows())
    write_short_form(grouped(read_rows()))


def run_all(engines: list[Engine], only: str, *, heavy: bool, again: bool) -> None:
    """Measure; engines in turn for each setting, so that they are compared under the same load."""
    rows = read_rows()
    asked = {(e.name, m.name, s) for m, s in every(only, heavy) for e in engines}
    if again:
        rows = [row for row in rows if key_of(row) not in asked]
        RESULTS.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    done = {key_of(row): row for row in rows}
    with RESULTS.open("a") as results, scripted_server() as server:
        for one in engines:
            if (again and not only) or (one.name, "about", "") not in done:
                row = {
                    "engine": one.name,
                    "measure": "about",
                    "setting": "",
                    **about(Bench(server), one),
                    "machine": machine(),
                }
                done[key_of(row)] = keep(row, results)
        for measure, setting in every(only, heavy):
            for one in engines:
                key = (one.name, measure.name, setting)
                cannot = "failed" in done.get((one.name, "about", ""), {})
                left_out = one.name in measure.skips or (one.only and measure.name not in one.only)
                if key not in done and not cannot and not left_out:
                    keep(measured(Bench(server), one, measure, setting), results)


def keep(row: Row, results: Any) -> Row:
    """Write a row and show it; without the paths of this machine, which errors tell."""
    row = {
        name: _PATH.sub("a temporary file", value) if isinstance(value, str) else value
        for name, value in row.items()
    }
    results.write(json.dumps(row, ensure_ascii=False) + "\n")
    results.flush()
    shown = {name: value for name, value in row.items() if name not in ("machine", "when", "notes", "traceback")}
    print(shown, flush=True)
    return row


if __name__ == "__main__":
    typer.run(main)
