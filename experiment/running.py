"""Runs the examples as commands: what goes wrong is a line that says what to do, and not a page of calls."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import typer

from rlm_dspy.cli.errors import errors_as_lines

if TYPE_CHECKING:
    from collections.abc import Callable


def run(main: Callable[..., None]) -> None:
    """Run a function as a command, with its parameters as options."""

    @functools.wraps(main)
    def command(*args: Any, **options: Any) -> None:
        with errors_as_lines(debug=False):
            main(*args, **options)

    typer.run(command)
