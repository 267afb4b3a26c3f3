"""Runs a job of this package in a process of its own, which cannot outlast the call or fill the memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Literal

from pydantic import BaseModel, ValidationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

MEMORY_BYTES = 1 << 30
FOLDER = Path(__file__).parent
"""The folder of the jobs."""
_GRACE_SECONDS = 2
"""The process ends itself at its limit, where the system has alarms."""
_REPORT_BYTES = 64_000
_PASSED_ON = ("SSL_CERT_DIR", "SSL_CERT_FILE", "SYSTEMROOT")
"""The only environment variables that the process gets, because others may hold keys."""


class Report(BaseModel):
    """The report of a job at its end."""

    problem: str = ""
    """Empty after success. Any job may report `failed`, `memory`, `large` or `missing`; without a report it is
    `time` or `crashed`."""
    detail: str = ""
    content_type: str = ""
    """The content type of a web page, as its server gives it."""


def run_isolated(
    job: Literal["document", "page", "table"],
    settings: Mapping[str, JsonValue],
    source: IO[bytes] | int,
    *,
    seconds: int,
    file_bytes: int,
    memory_bytes: int = MEMORY_BYTES,
) -> tuple[Report, IO[bytes]]:
    """Run a job; return its report, and its output as a file.

    Args:
        job: The name of its module.
        settings: Its settings besides these limits.
        source: Its standard input.
        seconds: The time after which it is killed with all its child processes.
        file_bytes: The maximum size of its output.
        memory_bytes: The maximum of its private memory.
    """
    from rlm_dspy.interpreters import confinement

    folder = str(Path(confinement.__file__).parent)
    bounds = {"memory_bytes": memory_bytes, "seconds": seconds, "file_bytes": file_bytes}
    given = {**settings, **bounds, "job": job, "path": [*filter(None, sys.path)], "confinement": folder}
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    output = TemporaryFile(buffering=0)  # noqa: SIM115 (the caller reads it, or hands it on where it is)
    with TemporaryFile() as messages:
        process = subprocess.Popen(  # noqa: S603 (this Python and this package)
            [sys.executable, "-I", str(FOLDER / "start.py")],
            stdin=source,
            stdout=output,
            stderr=messages,
            env={**environment, "SETTINGS": json.dumps(given)},  # not in an argument, which others may see
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(seconds + _GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _kill(process)
        report = _report(code, messages)
    output.seek(0)
    return report, output


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and those that it has started."""
    with suppress(OSError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _report(code: int | None, messages: IO[bytes]) -> Report:
    if code is None or (sys.platform != "win32" and code in (-signal.SIGALRM, -signal.SIGXCPU)):
        return Report(problem="time")
    size = messages.seek(0, os.SEEK_END)
    messages.seek(max(0, size - _REPORT_BYTES))
    last = messages.read().rstrip().rpartition(b"\n")[2]
    if code == 0:
        with suppress(ValidationError):
            return Report.model_validate_json(last)
    how = f"signal {-code}" if code < 0 else f"code {code}"
    return Report(problem="crashed", detail=f"{how}; {last.decode(errors='replace')[:200]}".rstrip("; "))
