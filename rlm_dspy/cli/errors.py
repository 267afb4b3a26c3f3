"""How commands end: exit codes, and errors as one line on standard error."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from typing import TYPE_CHECKING

import typer

from rlm_dspy.errors import UsageError
from rlm_dspy.text import print_safely, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

ANSWERED, UNANSWERED, BAD_USAGE, FAILED, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143
"""The exit codes, as the help of `ask` explains them."""


@contextlib.contextmanager
def errors_as_lines(*, debug: bool, interrupted: Callable[[], str] = lambda: "Interrupted.") -> Iterator[None]:
    """Turn what is raised into one line and an exit code.

    Args:
        debug: Print the traceback as well.
        interrupted: Returns the line of an interrupt: how far the command is.
    """
    try:
        yield
    except KeyboardInterrupt:
        tell(interrupted())
        raise typer.Exit(INTERRUPTED) from None
    except typer.BadParameter as error:
        error.message = printable(error.message)
        raise  # typer tells it
    except (typer.Exit, typer.Abort):
        raise  # as it does this
    except Exception as error:  # noqa: BLE001 (whatever it is, a person reads a line)
        if debug:
            tell(traceback.format_exc())
        from rlm_dspy.observe.record import in_one_line

        said = in_one_line(error)
        tell(
            f"Error: {said} it gives no reason; --debug shows where." if said.endswith(": ") else f"Error: {said}"
        )
        bad_usage = isinstance(error, (ValueError, TypeError))
        raise typer.Exit(BAD_USAGE if bad_usage else FAILED) from None


@contextlib.contextmanager
def quiet_dspy() -> Iterator[None]:
    """Load DSPy, and log only its errors in this scope: what it warns of, the view shows."""
    import dspy  # noqa: F401  # it sets up its logger when it is imported

    logger = logging.getLogger("dspy")
    for handler in logger.handlers:
        handler.addFilter(print_safely)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def tell(line: str) -> None:
    """Print a line on standard error; nothing is lost if nobody reads it any more."""
    with contextlib.suppress(OSError):
        typer.echo(printable(line), err=True)


def done(write: Callable[[], object], told: str) -> bool:
    """Write a file, and tell that it is written or why it is not; return whether it is."""
    try:
        write()
    except Exception as error:  # noqa: BLE001 (what was paid for goes on)
        from rlm_dspy.observe.record import in_one_line

        tell(f"Error: {in_one_line(error)}")
        return False
    tell(told)
    return True


def say(text: str) -> None:
    """Print a result on standard output: as it is for another program, printable for a person.

    Raises:
        OSError: If it was not all taken: standard output is closed, its reader is gone, or its disk is full.
    """
    if sys.stdout is None:
        raise OSError("standard output is closed")
    try:
        typer.echo(printable(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter fails when it ends
        raise


def check_writable(path: Path | None, option: str) -> None:
    """Check that a file can be written, before anything is paid for.

    Args:
        path: Of the file; None is fine.
        option: The option that named it, for the message.

    Raises:
        UsageError: If it is a directory, or lies in none.
    """
    if path is not None and path.is_dir():
        raise UsageError(f"{option} {path}: this is a directory. Name a file in it.")
    if path is not None and not path.absolute().parent.is_dir():
        raise UsageError(f"{option} {path}: there is no directory {path.parent} to write a file to.")


def check_distinct(written: dict[str, Path | None], read: Iterable[Path]) -> None:
    """Check that no file is written twice, and none that is read.

    Args:
        written: The files to write, by the option that names them; None is fine. Devices and pipes are, too.
        read: The files that are read.

    Raises:
        UsageError: If two of them are one file.
    """
    taken = {path.resolve(): "a file that is read" for path in read}
    for option, path in written.items():
        if path is None or (path.exists() and not path.is_file()):
            continue
        if path.resolve() in taken:
            raise UsageError(f"{option} {path}: this is {taken[path.resolve()]}. Name another file to write.")
        taken[path.resolve()] = f"the file of {option}"
