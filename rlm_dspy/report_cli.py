"""The commands that show saved runs: `rlm-dspy report run.json`, `rlm-dspy diff a.json b.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from rlm_dspy.diff import diff_html, diff_text
from rlm_dspy.exits import check_writable, errors_as_lines
from rlm_dspy.progress import printable
from rlm_dspy.record import Record
from rlm_dspy.report import write_report, write_whole
from rlm_dspy.task import UsageError

_Run = Annotated[Path, typer.Argument(help="A run that ask --save wrote.", show_default=False)]
_Output = Annotated[Path | None, typer.Option("-o", "--output", help="The page to write.", show_default=False)]
_Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def report(run: _Run, output: _Output = None, debug: _Debug = False) -> None:
    """Write a saved run as one HTML page: the answer, turns, sub-calls, time, cost, coverage of the input.

    The page holds all it needs: it opens without a network and runs no script. Its path is printed; by default it
    is the run's with .html at the end.

    Exit codes: 0 if it was written, 2 if there is no such run.
    """
    with errors_as_lines(debug=debug):
        target = output or run.with_suffix(".html")
        check_writable(target, "--output")
        write_report(_load(run), target)
    typer.echo(target)


def diff(first: _Run, second: _Run, output: _Output = None, debug: _Debug = False) -> None:
    """Say in which ways two saved runs differ: settings, answers, what they used, turn by turn.

    With -o also as an HTML page with the runs side by side.

    Exit codes: 0 if both could be read, 2 if not.
    """
    with errors_as_lines(debug=debug):
        check_writable(output, "--output")
        a, b = _load(first), _load(second)
        names = (str(first), str(second))
        if output is not None:
            write_whole(diff_html(a, b, names), output)
    typer.echo(printable(diff_text(a, b, names)))
    if output is not None:
        typer.echo(f"Side by side: {output}")


def _load(path: Path) -> Record:
    try:
        return Record.load(path)
    except FileNotFoundError as error:
        raise UsageError(f"There is no file {path}.") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} holds no run of this version. Give a file that rlm-dspy ask --save, or Record.save, wrote."
        ) from error
