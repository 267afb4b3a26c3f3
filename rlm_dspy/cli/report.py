"""The commands `rlm-dspy report run.json` and `rlm-dspy diff a.json b.json`, which show saved runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlm_dspy.cli.errors import check_outputs, errors_as_lines, quiet_dspy
from rlm_dspy.cli.options import Debug, Run, RunNumber
from rlm_dspy.cli.user.history import history_folder
from rlm_dspy.text import printable, write_whole

_Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="The HTML file to write.", show_default=False)
]


def report(path: Run, output: _Output = None, run: RunNumber = None, debug: Debug = False) -> None:
    """Write a saved run as one HTML page: answer, turns, sub-calls, time, cost, coverage of the input.

    The page is self-contained: it needs no network and runs no script. The command prints its path; by default
    the path of the run with the suffix .html, for a run of the history in the working directory.

    Exit codes: 0 if the page was written, 2 if the run cannot be read.
    """
    with errors_as_lines(debug=debug), quiet_dspy():
        from rlm_dspy.observe.load import load_record
        from rlm_dspy.report.write_report import write_report

        page = path.with_suffix(".html")
        target = output or (Path(page.name) if path.parent == history_folder() else page)
        check_outputs({"--output": target}, [path])
        write_report(load_record(path, run), target)
    typer.echo(target)


def diff(
    first: Run,
    second: Run,
    output: _Output = None,
    run_a: RunNumber = None,
    run_b: RunNumber = None,
    debug: Debug = False,
) -> None:
    """Compare two saved runs: settings, answers, usage, turn by turn.

    With -o, also write an HTML page with the runs side by side.

    Exit codes: 0 if both runs could be read, 2 if not.
    """
    with errors_as_lines(debug=debug), quiet_dspy():
        from rlm_dspy.observe.load import load_record
        from rlm_dspy.report.diff import diff_html, diff_text

        check_outputs({"--output": output}, [first, second])
        a, b = load_record(first, run_a, "--run-a"), load_record(second, run_b, "--run-b")
        names = (_named(first, run_a), _named(second, run_b))
        if output is not None:
            write_whole(diff_html(a, b, names), output)
    typer.echo(printable(diff_text(a, b, names)))
    if output is not None:
        typer.echo(f"Side by side: {output}")


def _named(path: Path, number: int | None) -> str:
    return str(path) if number is None else f"{path} (run {number})"
