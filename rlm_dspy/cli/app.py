"""The command line `rlm-dspy`. Each command has a module of its name.

Commands import DSPy and MLflow, which takes seconds, when they run: `--version` and `--help` answer at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Annotated

import typer

from rlm_dspy.cli.ask import ask
from rlm_dspy.cli.chat.command import chat
from rlm_dspy.cli.doctor import doctor
from rlm_dspy.cli.errors import INTERRUPTED, TERMINATED
from rlm_dspy.cli.mcp.command import mcp
from rlm_dspy.cli.models import models
from rlm_dspy.cli.optimize import optimize
from rlm_dspy.cli.replay import replay
from rlm_dspy.cli.report import diff, report
from rlm_dspy.cli.ui import ui
from rlm_dspy.cli.user.history_commands import history
from rlm_dspy.cli.user.resume import resume
from rlm_dspy.cli.user.serve_command import serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
"""Set at process start unless already set: without a network, LiteLLM and MLflow would wait for it."""

_SAME_INTERRUPT_SECONDS = 1

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
    with _terminable(), _one_interrupt_at_a_time():
        try:
            app()
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Handle SIGTERM as Ctrl-C, so that nothing is lost, with exit code 143. Restore the handler at the end.

    Does nothing outside the main thread, or if SIGTERM is already handled or ignored.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    came = False

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal came
        again, came = came, True
        if not again:  # some senders signal the process and its group
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except SystemExit as end:
        if came and end.code:
            raise SystemExit(TERMINATED) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def _one_interrupt_at_a_time() -> Iterator[None]:
    """Ignore a Ctrl-C within a second of the last one, which would cut off what the last one makes us save.

    `uv run` and other parents pass on the signal that the terminal has sent to the process already.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    last = float("-inf")

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before > _SAME_INTERRUPT_SECONDS:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
