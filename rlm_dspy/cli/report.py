"""The commands `rlm-dspy report run.json` and `rlm-dspy diff a.json b.json`, which show saved runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlm_dspy.cli.errors import check_distinct, check_writable, errors_as_lines, quiet_dspy
from rlm_dspy.text import printable, write_whole

_Run = Annotated[Path, typer.Argument(help="A file written by ask --save or --log.", show_default=False)]
_Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="The HTML file to write.", show_default=False)
]
_Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")]


def report(
    run: _Run,
    output: _Output = None,
    number: Annotated[
        int | None,
        typer.Option("--run", min=1, help="Number of the run, if the file has several; the first is 1."),
    ] = None,
    debug: _Debug = False,
) -> None:
    """Write a saved run as one HTML page: answer, turns, sub-calls, time, cost, coverage of the input.

    The page is self-contained: it needs no network and runs no script. The command prints its path; by default
    the path of the run with the suffix .html.

    Exit codes: 0 if the page was written, 2 if the run cannot be read.
    """
    with errors_as_lines(debug=debug), quiet_dspy():
        from rlm_dspy.observe.load import load_record
        from rlm_dspy.observe.report.page import write_report

        target = output or run.with_suffix(".html")
        check_writable(target, "--output")
        check_distinct({"--output": target}, [run])
        write_report(load_record(run, number), target)
    typer.echo(target)


def diff(
    first: _Run,
    second: _Run,
    output: _Output = None,
    run_a: Annotated[
        int | None,
        typer.Option(min=1, help="Number of the run in the first file, if it has several; the first is 1."),
    ] = None,
    run_b: Annotated[int | None, typer.Option(min=1, help="Number of the run in the second file.")] = None,
    debug: _Debug = False,
) -> None:
    """Compare two saved runs: settings, answers, usage, turn by turn.

    With -o, also write an HTML page with the runs side by side.

    Exit codes: 0 if both runs could be read, 2 if not.
    """
    with errors_as_lines(debug=debug), quiet_dspy():
        from rlm_dspy.observe.load import load_record
        from rlm_dspy.observe.report.diff import diff_html, diff_text

        check_writable(output, "--output")
        check_distinct({"--output": output}, [first, second])
        a, b = load_record(first, run_a, "--run-a"), load_record(second, run_b, "--run-b")
        names = (_named(first, run_a), _named(second, run_b))
        if output is not None:
            write_whole(diff_html(a, b, names), output)
    typer.echo(printable(diff_text(a, b, names)))
    if output is not None:
        typer.echo(f"Side by side: {output}")


def _named(path: Path, number: int | None) -> str:
    return str(path) if number is None else f"{path} (run {number})"
