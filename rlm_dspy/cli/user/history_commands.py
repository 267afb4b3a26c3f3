"""The commands `rlm-dspy history ...`, which show the last runs of `rlm-dspy ask`."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from rlm_dspy.cli.errors import errors_as_lines, say
from rlm_dspy.cli.user.answer import answer_of, summary_of
from rlm_dspy.cli.user.history import beginning_of, history_folder, kept_run, kept_runs
from rlm_dspy.text import columns, counted, one_line, printable

if TYPE_CHECKING:
    from pathlib import Path


def _number(text: str) -> int:
    """Return the number of a run in the list; `@1`, the form that `report` takes, is accepted too."""
    try:
        return int(str(text).removeprefix("@"))
    except ValueError:
        raise typer.BadParameter("Write the number of a run in `rlm-dspy history`: 1, or @1.") from None


Number = Annotated[int, typer.Argument(parser=_number, help="The number in the list; 1 is the last run.")]

_SHOWN_CHARS = 60

history = typer.Typer(invoke_without_command=True)


@history.callback()
def list_history(context: typer.Context) -> None:
    """List the last runs of `rlm-dspy ask`; report, diff and replay take @1, @2, ... for them.

    The last 100 are kept, within 200 MB, readable by you alone: the question, the code with its outputs, and the
    answer, but not the files. RLM_DSPY_HISTORY, or `history` in the configuration file, sets another number; 0
    keeps none, and so does ask --no-history.
    """
    if context.invoked_subcommand is not None:
        return
    with errors_as_lines(debug=False):
        rows = [_row(number, path) for number, path in enumerate(kept_runs(), start=1)]
        table = columns([("#", "WHEN", "END", "MODEL", "QUESTION"), *rows])
        say(printable(f"{table}\n\nFolder: {history_folder()}" if rows else f"No runs in {history_folder()}."))


@history.command()
def show(
    number: Number = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the run as one JSON object.")] = False,
) -> None:
    """Print the steps and the answer of a run. `rlm-dspy report @1` writes them as a page."""
    with errors_as_lines(debug=False):
        from rlm_dspy.observe.console import Lines
        from rlm_dspy.observe.load import load_record
        from rlm_dspy.report.formatting import used

        path = kept_run(number)
        record = load_record(path)
        if as_json:
            say(record.as_json())
            return
        view, asked = Lines(sys.stdout), beginning_of(path)
        view.head(asked.question, ", ".join([*asked.files, record.model]))
        for turn, step in enumerate(record.trajectory, start=1):
            view.step(turn, step, used(step.spent, step.seconds))
        view.end(summary_of(record), answered=record.answered)
        if result := record.error or (answer_of(record.outputs) if record.answered else ""):
            say(f"\n{result}")


@history.command()
def clear() -> None:
    """Delete all runs of the history."""
    with errors_as_lines(debug=False):
        runs = kept_runs()
        for path in runs:
            path.unlink(missing_ok=True)
        say(f"{counted(len(runs), 'run')} deleted from {history_folder()}.")


def _row(number: int, path: Path) -> tuple[str, ...]:
    found = beginning_of(path)
    when = datetime.fromisoformat(found.at).astimezone() if found.at else None
    shown = "" if when is None else f"{when:%Y-%m-%d %H:%M}"
    return str(number), shown, found.stop or "no end", found.model, one_line(found.question, _SHOWN_CHARS)
