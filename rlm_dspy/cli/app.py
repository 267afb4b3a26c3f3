"""The command line `rlm-dspy`: registers the commands, each of which is defined in another module.

Commands import DSPy and MLflow, which takes seconds, when they run: `--version` and `--help` answer at once.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from rlm_dspy.cli.ask import ask
from rlm_dspy.cli.chat.command import chat
from rlm_dspy.cli.doctor import doctor
from rlm_dspy.cli.errors import INTERRUPTED
from rlm_dspy.cli.mcp.command import mcp
from rlm_dspy.cli.models import models
from rlm_dspy.cli.optimize import optimize
from rlm_dspy.cli.replay import replay
from rlm_dspy.cli.report import diff, report
from rlm_dspy.cli.signals import ended_as_by_ctrl_c, exit_code_kept, one_interrupt_at_a_time
from rlm_dspy.cli.user.history_commands import history
from rlm_dspy.cli.user.resume import resume
from rlm_dspy.cli.user.serve_command import serve
from rlm_dspy.cli.user.ui import ui

_ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
"""Set at process start unless already set: without a network, LiteLLM and MLflow would wait for it."""

app = typer.Typer(
    name="rlm-dspy",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line of this process."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    app.rich_markup_mode = "rich" if sys.stdout and sys.stdout.isatty() else None
    with exit_code_kept(), ended_as_by_ctrl_c(), one_interrupt_at_a_time():
        try:
            app()
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"rlm-dspy {version('dspy-recursive-lm')}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Recursive Language Models: typed answers over texts far larger than a model's window."""


for _command in (ask, chat, resume, report, diff, replay, optimize, mcp, serve, ui, doctor):
    app.command()(_command)
app.add_typer(models, name="models")
app.add_typer(history, name="history")
