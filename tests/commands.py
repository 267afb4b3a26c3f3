"""`rlm-dspy` run by tests: in this process, and as a process of its own, with a scripted LM."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import dspy
import pytest
from typer.testing import CliRunner

from rlm_dspy.cli.app import app
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.report.record import Record
from rlm_dspy.testing import ScriptedLM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typer.testing import Result

ROOT = Path(__file__).resolve().parent.parent
SUBMIT_42 = "```python\nSUBMIT(answer='42')\n```"
LOOK = "I look first.\n```python\nprint(len(context))\n```"
PROGRAM = """
import json, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits that it is ignored
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as one under nohup does
import dspy
from rlm_dspy.cli import app as cli
from rlm_dspy.testing import ScriptedLM
seconds, replies = json.loads(sys.argv.pop(1))
said = [reply if isinstance(reply, str) else lambda _: time.sleep(reply["seconds"]) for reply in replies]
dspy.configure(lm=ScriptedLM(said, seconds=seconds))
cli.main()
"""
EMBEDDED_PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
import dspy
from rlm_dspy.cli import app as cli
from rlm_dspy.embedded.engine import embedded_lm
dspy.configure(lm=embedded_lm(max_tokens=48, cache=False))
cli.main()
"""


def ask(
    *arguments: str, replies: Any = (LOOK, SUBMIT_42), stdin: str | bytes | None = None, **settings: Any
) -> Result:
    """Run `rlm-dspy ask` in this process, with a scripted LM and code in this process."""
    settings = {"lm": ScriptedLM(replies), "interpreter_factory": LocalPythonInterpreter, **settings}
    with dspy.context(**settings):
        return CliRunner().invoke(app, ["ask", *arguments], input=stdin)


def record_of(result: Result) -> Record:
    return Record.model_validate_json(result.stdout)


def environment() -> dict[str, str]:
    """Return this process's environment without what would colour a pipe or choose a model or a store."""
    unwanted = {"FORCE_COLOR", "CLICOLOR_FORCE", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"}
    # MLflow sets some of these when a test of this process chooses a store.
    unwanted |= {"MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"}
    kept = {name: value for name, value in os.environ.items() if name not in unwanted and "LM_STUDIO" not in name}
    search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**kept, "PYTHONPATH": search, "TERM": "xterm-256color"}


NEVER = {"seconds": 600}
"""A reply that the model writes for longer than any test waits."""


def scripted(*arguments: str, replies: list[Any], seconds: float = 0.0) -> list[str]:
    """Return the command of a process that is `rlm-dspy` with a scripted LM."""
    return [sys.executable, "-c", PROGRAM, json.dumps([seconds, replies]), *arguments]


@contextlib.contextmanager
def running(
    command: list[str], stdin: IO[str] | int = subprocess.DEVNULL, **variables: str
) -> Iterator[subprocess.Popen[str]]:
    """Run a command with piped output and further environment variables; it is dead in the end."""
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=stdin,
        text=True,
        env={**environment(), **variables},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_event(path: Path, event: str, count: int) -> None:
    """Wait until an event log holds an event so many times."""
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_text(encoding="utf-8").count(f'"event":"{event}"') < count:
        assert time.monotonic() < deadline, f"{path} does not hold {count} times {event}"
        time.sleep(0.05)


def read_until(process: subprocess.Popen[str], beginning: str) -> str:
    """Return the first line of standard error that begins so."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(beginning):
            return line
    pytest.fail(f"no line begins with {beginning!r}")
