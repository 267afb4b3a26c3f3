"""Forecasts the usage of a run of `rlm-dspy ask`, and asks whether to start it."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import typer

from rlm_dspy.cli.errors import UNANSWERED, tell
from rlm_dspy.cli.user.history import kept_runs
from rlm_dspy.errors import UsageError

if TYPE_CHECKING:
    import rlm_dspy
    from rlm_dspy.cli.task import Task


def approve_forecast(task: Task, rlm: rlm_dspy.RLM, model: str) -> None:
    """Print the forecast of a run from the runs in the history, and ask whether to start it.

    Args:
        task: The task.
        rlm: The module.
        model: The model of the turns.

    Raises:
        UsageError: If there is no terminal to ask at.
        typer.Exit: If the answer is no.
    """
    from rlm_dspy.compute import forecast
    from rlm_dspy.observe.event_reader import read_log
    from rlm_dspy.report.record import Record, digest_of
    from rlm_dspy.subcalls.ad_hoc import written

    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError("--forecast asks before it runs, which needs a terminal. Leave it out to run at once.")
    size = sum(digest_of(value, 0).size for value in task.inputs.values())
    past = list[Record]()
    for path in kept_runs():
        with contextlib.suppress(OSError, ValueError):  # a run that never started, or of another version
            past += read_log(path)
    try:
        tell(f"Forecast: {forecast(past, model=model, signature=written(rlm.signature), input_size=size)}.")
    except ValueError:
        tell(f"No forecast: the history has no run of {model} that ended.")
    if not typer.confirm("Run it?", err=True):
        tell("Not run.")
        raise typer.Exit(UNANSWERED)
