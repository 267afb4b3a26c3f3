"""How commands end: exit codes, and errors as one line on standard error."""

from __future__ import annotations

import contextlib
import traceback
from typing import TYPE_CHECKING

import typer

from rlm_dspy.progress import printable
from rlm_dspy.record import in_one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

ANSWERED, UNANSWERED, BAD_USAGE, FAILED, INTERRUPTED = 0, 1, 2, 3, 130
"""The exit codes, as the help of `ask` explains them."""


@contextlib.contextmanager
def errors_as_lines(*, debug: bool) -> Iterator[None]:
    """Turn what is raised into one line and an exit code.

    Args:
        debug: Print the traceback as well.
    """
    try:
        yield
    except KeyboardInterrupt:
        tell("Interrupted before the first turn.")
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:  # noqa: BLE001 (whatever it is, a person reads a line)
        if debug:
            traceback.print_exc()
        tell(f"Error: {printable(in_one_line(error))}")
        bad_usage = isinstance(error, (ValueError, TypeError))
        raise typer.Exit(BAD_USAGE if bad_usage else FAILED) from None


def tell(line: str) -> None:
    """Print a line on standard error."""
    typer.echo(line, err=True)
