"""The same work through every RLM library, side by side: mechanics with a scripted model over real HTTP.

    uv run --extra embedded --extra rlms --group bench python experiment/bench/side_by_side.py
    uv run ... experiment/bench/side_by_side.py --engine rlms --engine ours --into mine

Every row goes to `results/side_by_side.jsonl` as it comes; a second start goes on where the first one ended, and
`--again` measures anew: the old row stands until the new one is there. `RESULTS.md` and the plots are made from
the rows. With `--into FOLDER` rows and report are in a folder of yours, which begins empty. Libraries that are no
part of this project are installed, each in an environment of its own, below `~/.cache/rlm-bench` (or
`RLM_BENCH_CACHE`).
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
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
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "study")]
import row_file  # noqa: E402  # scripts of that folder are run, not installed

RESULTS = HERE / "results" / "side_by_side.jsonl"
Row = dict[str, Any]
_PATH = re.compile(re.escape(tempfile.gettempdir()) + r"/[^\s'\"]*")


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
    except EngineDied as error:
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
        "machine": machine(),
    }


def main(
    engine: Annotated[list[str] | None, typer.Option(help=f"Only these, of: {'; '.join(ENGINES)}.")] = None,
    only: Annotated[str, typer.Option(help="Only measures with this in their name or setting.")] = "",
    heavy: Annotated[bool, typer.Option(help="Inputs of 1 GB too; needs 20 GB of memory.")] = False,
    again: Annotated[bool, typer.Option(help="Measure anew what there is already.")] = False,
    into: Annotated[
        Path | None, typer.Option(help="A folder for rows, tables and plots; those of the repository stay.")
    ] = None,
    report: Annotated[bool, typer.Option(help="Only write the report from the rows.")] = False,
) -> None:
    """Measure what has not been measured yet, then write the tables and plots."""
    chosen, measures = engines_named(engine or list(ENGINES)), list(every(only.lower(), heavy))
    is_tracing = not engine and only.lower() in "cost of tracing"
    if not measures and not is_tracing:
        names = sorted({f"{measure.name} {setting}".strip() for measure, setting in every("", heavy=True)})
        raise typer.BadParameter(f"No measure has {only!r} in its name. There are: {'; '.join(names)}.")
    path = RESULTS if into is None else into / RESULTS.name
    if not report:
        run_all(path, chosen, measures, again=again, whole=again)
        if is_tracing and into is None and (again or not tracing.RESULTS.exists()):
            tracing.measure_all()
    written = write_report(row_file.read(path), into or HERE)
    if into is None:
        write_short_form(grouped(row_file.read(path)))
    print(f"The tables are in {written}." if written else "There are no rows yet: nothing was measured.")


def engines_named(names: list[str]) -> list[Engine]:
    """Return engines by their names.

    Raises:
        typer.BadParameter: If there is none of a name.
    """
    if unknown := [name for name in names if name not in ENGINES]:
        raise typer.BadParameter(f"There is no engine {unknown[0]!r}. There are: {'; '.join(ENGINES)}.")
    return [ENGINES[name] for name in names]


def run_all(
    path: Path, engines: list[Engine], measures: list[tuple[Measure, str]], *, again: bool, whole: bool
) -> None:
    """Measure; engines in turn for each setting, so that they are compared under the same load.

    Args:
        path: Where the rows are.
        engines: Which.
        measures: With their settings.
        again: Also what has a row.
        whole: Also what engines say of themselves, though they have a row of it.

    Raises:
        SystemExit: If a library cannot be installed; the rows so far stay as they are.
    """
    done = {key_of(row): row for row in row_file.read(path)}
    there = 0
    try:
        with scripted_server() as server:
            for one in engines:
                key = (one.name, "about", "")
                if key not in done or whole:
                    row = {"engine": one.name, "measure": "about", "setting": "", **about(Bench(server), one)}
                    keep({**row, "machine": machine()}, done, path)
            for measure, setting in measures:
                for one in engines:
                    key = (one.name, measure.name, setting)
                    cannot = "failed" in done[one.name, "about", ""]
                    left_out = one.name in measure.skips or (one.only and measure.name not in one.only)
                    if cannot or left_out:
                        continue
                    if key in done and not again:
                        there += 1
                        continue
                    keep(measured(Bench(server), one, measure, setting), done, path)
    except subprocess.CalledProcessError as error:
        sys.exit(f"A library could not be installed; is the package index reachable? {error}")
    if there:
        print(f"{there} rows were there already: --again measures them anew, --into FOLDER apart from them.")


def keep(row: Row, done: dict[tuple[str, str, str], Row], path: Path) -> None:
    """Put a row in the place of the one before it, without the paths of this machine, and show it."""
    row = {
        name: _PATH.sub("a temporary file", value) if isinstance(value, str) else value
        for name, value in row.items()
    }
    done[key_of(row)] = row
    row_file.write(path, done.values())
    shown = {name: value for name, value in row.items() if name not in ("machine", "when", "notes", "traceback")}
    print(shown, flush=True)


if __name__ == "__main__":
    typer.run(main)
