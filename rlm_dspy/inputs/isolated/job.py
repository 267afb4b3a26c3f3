"""Runs a job within its limits, and reports how it ended.

A job is a module beside this one with a function `main(settings, bounds)`. It reads standard input and writes
standard output; the last line of standard error is the report in JSON.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import sys
from typing import NoReturn, Protocol, TypedDict


class Settings(TypedDict):
    """The settings of every job."""

    job: str
    path: list[str]
    """The search path for modules."""
    confinement: str
    """The folder of the package `confinement`."""
    memory_bytes: int
    seconds: int
    file_bytes: int


class Bounds(Protocol):
    """The module `confinement.process_bounds`."""

    def bind(self, *, memory_bytes: int, seconds: int, file_bytes: int) -> None:
        """Limit memory, time and output."""

    def close_files(self) -> None:
        """Allow no file to be opened from now on."""

    def close_descriptors(self) -> None:
        """Allow no new file, socket or pipe from now on."""


class Refused(Exception):  # noqa: N818 (it reports to the host, and is not an error of the job)
    """The job cannot be done.

    Args:
        problem: A code, for which the host has a message.
        detail: The text that the message inserts.
    """

    def __init__(self, problem: str, detail: str = "") -> None:
        super().__init__(problem, detail)
        self.problem, self.detail = problem, detail


def run(settings: Settings) -> NoReturn:
    """Run the job that the settings name, report, and end the process."""
    sys.stderr.write(f"\n{json.dumps(_report(settings))}")
    sys.stderr.flush()
    os._exit(0)  # writes no more, and does not wait for the threads of a library that read a damaged file


def _report(settings: Settings) -> dict[str, str]:
    """Run the job; return its report, even if the job fails."""
    bounds: Bounds = importlib.import_module("_rlm_confinement.process_bounds")
    bounds.bind(**{name: settings[name] for name in ("memory_bytes", "seconds", "file_bytes")})
    try:
        report: dict[str, str] = importlib.import_module(f".{settings['job']}", __package__).main(settings, bounds)
    except Refused as refused:
        return {"problem": refused.problem, "detail": refused.detail}
    except ImportError as error:
        return {"problem": "missing", "detail": str(error.name)}
    except MemoryError:
        return {"problem": "memory"}
    except Exception as error:  # noqa: BLE001 (parsers and clients raise many kinds)
        if isinstance(error, OSError) and error.errno == errno.EFBIG:
            return {"problem": "large", "detail": str(error)}
        problem = "memory" if "malloc" in str(error) else "failed"
        return {"problem": problem, "detail": (str(error) or type(error).__name__)[:500]}
    return report
