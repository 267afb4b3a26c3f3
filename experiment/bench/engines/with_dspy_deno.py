"""`dspy.RLM` with its default, `dspy.PythonInterpreter`: code runs in Pyodide, in a process of Deno.

Its runner loads one module from deno.land. Where that cannot be reached, `RLM_BENCH_DENO_IMPORTS` names an import
map that puts a file in its place.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
import dspy.primitives
from with_dspy import VERSION as DSPY
from with_dspy import lm_of, rlm_of

if TYPE_CHECKING:
    from worker import Task

_IMPORTS = os.environ.get("RLM_BENCH_DENO_IMPORTS")
VERSION = DSPY
NOTES = "dspy.LM(cache=False); the default interpreter" + (
    ", with the module that it loads from deno.land given by an import map" if _IMPORTS else ""
)


def interpreter() -> Any:
    """Return DSPy's default interpreter."""
    if not _IMPORTS:
        return dspy.PythonInterpreter()
    runner = Path(next(iter(dspy.primitives.__path__))) / "runner.js"
    deno = shutil.which("deno") or "deno"
    command = [deno, "run", "--allow-read", "--no-prompt", f"--import-map={_IMPORTS}", str(runner)]
    return dspy.PythonInterpreter(deno_command=command)


with interpreter() as _probe:
    _probe.execute("1")


def run(task: Task) -> str | None:
    """Run once."""
    with dspy.context(lm=lm_of(task)):
        return str(rlm_of(task, interpreter)(context=task.context, question=task.question).answer)


async def arun(task: Task) -> str | None:
    """Run once on the running event loop."""
    with dspy.context(lm=lm_of(task)):
        return str((await rlm_of(task, interpreter).acall(context=task.context, question=task.question)).answer)
