"""The command line: `rlm-dspy`. Each command stands in a module of its own, named `<command>_cli`."""

from __future__ import annotations

import logging
import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from rlm_dspy.ask_cli import ask
from rlm_dspy.doctor_cli import doctor
from rlm_dspy.exits import INTERRUPTED
from rlm_dspy.optimize_cli import optimize
from rlm_dspy.replay_cli import replay
from rlm_dspy.report_cli import diff, report
from rlm_dspy.ui_cli import ui

_ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
"""Set where the process starts, unless set: without network the first two would wait for it, MLflow for ever."""

app = typer.Typer(
    name="rlm-dspy",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line of this process."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("dspy").setLevel(logging.ERROR)  # what it warns of, the view shows
    app.rich_markup_mode = "rich" if sys.stdout.isatty() else None
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rlm-dspy {version('rlm-dspy')}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Recursive Language Models: typed answers over texts far larger than a model's window."""


for _command in (ask, report, diff, replay, optimize, ui, doctor):
    app.command()(_command)
