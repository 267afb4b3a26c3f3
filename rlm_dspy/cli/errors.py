"""Exit codes, and errors as one line on standard error."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from rlm_dspy.errors import UsageError
from rlm_dspy.text import check_writable, print_safely, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

ANSWERED, UNANSWERED, BAD_USAGE, FAILED, PAUSED, INTERRUPTED = 0, 1, 2, 3, 4, 130
"""The exit codes; `rlm-dspy ask --help` explains them."""


@contextlib.contextmanager
def errors_as_lines(*, debug: bool, interrupted: Callable[[], str] = lambda: "Interrupted.") -> Iterator[None]:
    """Report an exception as one line and an exit code.

    Args:
        debug: Print the traceback as well.
        interrupted: Returns the line to print after an interrupt.
    """
    try:
        yield
    except KeyboardInterrupt:
        tell(interrupted())
        raise typer.Exit(INTERRUPTED) from None
    except typer.BadParameter as error:
        error.message = printable(error.message)
        raise  # typer reports it
    except (typer.Exit, typer.Abort):
        raise  # typer handles these
    except Exception as error:  # noqa: BLE001 (a user sees one line for any error)
        if debug:
            tell(traceback.format_exc())
        from rlm_dspy.report.record import in_one_line

        hint = "" if str(error).strip() else "; run with --debug for the traceback"
        tell(f"Error: {in_one_line(error)}{hint}")
        bad_usage = isinstance(error, (ValueError, TypeError))
        raise typer.Exit(BAD_USAGE if bad_usage else FAILED) from None


@contextlib.contextmanager
def quiet_dspy() -> Iterator[None]:
    """Import DSPy, and log only its errors in this scope, because the view shows the warnings."""
    import dspy  # noqa: F401  # the import configures its logger

    for handler in logging.getLogger("dspy").handlers:
        handler.addFilter(print_safely)
    with logging_at("dspy", logging.ERROR):
        yield


@contextlib.contextmanager
def logging_at(name: str, level: int) -> Iterator[None]:
    """Set the level of a logger in this scope."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


def tell(line: str) -> None:
    """Print a line to standard error; ignore a closed stream."""
    with contextlib.suppress(OSError):
        typer.echo(printable(line), err=True)


def done(write: Callable[[], object], success: str = "", problem: str = "") -> bool:
    """Write something; return whether it was written.

    Args:
        write: Writes it.
        success: The line to print if it was written; empty for none.
        problem: The beginning of the line that reports an error.
    """
    try:
        write()
    except Exception as error:  # noqa: BLE001 (a failed write must not lose the answer)
        from rlm_dspy.report.record import in_one_line

        tell(f"Error: {problem}{in_one_line(error)}")
        return False
    if success:
        tell(success)
    return True


def say(text: str) -> None:
    """Print a result to standard output: unchanged into a pipe, escaped on a terminal.

    Raises:
        OSError: If standard output is closed, its reader has gone, or the disk is full.
    """
    if sys.stdout is None:
        raise OSError("standard output is closed")
    try:
        typer.echo(printable(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter fails when it ends
        raise


def check_outputs(written: Mapping[str, Path | None], read: Iterable[Path]) -> None:
    """Check before any model call that files can be written, none twice, and that no input file is overwritten.

    Args:
        written: The files to write, by option; None for an unused option. Devices and pipes may repeat.
        read: The files that are read.

    Raises:
        UsageError: If a path is a directory, its directory does not exist or cannot be written, or two paths are
            the same file.
    """
    taken = {os.path.realpath(path): "an input file" for path in read}
    for option, path in written.items():
        if path is None:
            continue
        if not str(path).strip() or path == Path():
            raise UsageError(f"{option}: the path is empty, or this folder; name a file.")
        if path.is_dir():
            raise UsageError(f"{option} {path}: the path is a directory; name a file in it.")
        if not path.absolute().parent.is_dir():
            raise UsageError(f"{option} {path}: directory {path.parent} does not exist.")
        try:
            check_writable(path)
        except OSError as error:
            raise UsageError(f"{option} {path}: it cannot be written: {error.strerror}.") from error
        if (real := os.path.realpath(path)) in taken:
            raise UsageError(f"{option} {path}: this is {taken[real]}; name another file to write.")
        if path.is_file() or not path.exists():
            taken[real] = f"also the file of {option}"
