"""The command `rlm-dspy doctor`."""

from __future__ import annotations

import typer

from rlm_dspy.text import printable


def doctor() -> None:
    """Print which confinement layers this system supports, and what they guarantee.

    Exit codes: 0 if PythonInterpreter runs here with its default confinement, 1 if it refuses.
    """
    from rlm_dspy import interpreters

    diagnosis = interpreters.doctor()
    typer.echo(printable(interpreters.render(diagnosis)))
    raise typer.Exit(0 if diagnosis.chosen else 1)
