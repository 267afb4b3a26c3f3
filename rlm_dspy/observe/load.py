"""Loads runs from a saved record or an event log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rlm_dspy.errors import UsageError
from rlm_dspy.json_values import json_objects
from rlm_dspy.observe.event_reader import read_log
from rlm_dspy.report.record import Record
from rlm_dspy.text import counted

if TYPE_CHECKING:
    import os


def load_records(path: str | os.PathLike[str]) -> list[Record]:
    """Return the runs in a file, in order. The format is detected from the content, not from the name.

    It may be a record (`Record.save`, `ask --save`) or an event log (`RunLog`, `ask --log`), also of a killed
    process.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is neither, or of another version.
    """
    first = next((found for found in json_objects(path) if found), {})  # none if a value spans several lines
    if "event" in first:
        return read_log(path)
    try:
        whole = first or json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, dict) and "trajectory" in whole and "signature" in whole:
        return [Record.model_validate(whole)]
    raise ValueError(f"{path} contains no run. Pass a file that `rlm-dspy ask --save` or `--log` wrote.")


def load_record(path: str | os.PathLike[str], number: int | None = None, option: str = "--run") -> Record:
    """Return one run of a file.

    Args:
        path: A file for `load_records`.
        number: Number of the run, if the file has several; the first is 1.
        option: The command-line option that selects the run, for messages.

    Raises:
        UsageError: If the file cannot be read, lacks that run, or has several and none was selected.
    """
    try:
        records = load_records(path)
    except FileNotFoundError as error:
        hint = f" The run of that number in `rlm-dspy history` is @{path}." if str(path).isdigit() else ""
        raise UsageError(f"File not found: {path}.{hint}") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise UsageError(
            f"{path} contains no run that this version can read. "
            "Give a file that rlm-dspy ask --save or --log wrote."
        ) from error
    if number is None and len(records) > 1:
        last = len(records)
        raise UsageError(f"{path} contains {last} runs. Choose one with {option} 1 to {option} {last}.")
    if number is not None and number > len(records):
        raise UsageError(f"{path} contains {counted(len(records), 'run')}; there is no run {number}.")
    return records[(number or 1) - 1]
