"""Runs the programs that download: pip, uv and the client of the hub. Shows how far they are."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LOOK_SECONDS = 0.2
_REASON_LINES = 3
_REMARKS = ("WARNING", "hint:")
"""Prefixes of lines by pip and uv that are not the reason of a failure."""
_MAX_REASON_CHARS = 300
_END_WITH_PARENT = (
    "import ctypes, os, signal, sys\n"
    "ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG\n"
    "if os.getppid() != int(sys.argv[1]): sys.exit(1)\n"
    "os.execvp(sys.argv[2], sys.argv[2:])"
)
"""Runs a command that the kernel kills when the process that started it has ended."""


class SourceFailed(Exception):  # noqa: N818
    """A source failed; the next one is tried."""


def run_client(command: list[str], folder: Path, before: int, show: Callable[[int], None]) -> None:
    """Run a command that downloads into a folder, and show its progress. It does not outlive the call."""
    environment = {**os.environ, "TMPDIR": str(folder), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with (folder / ".log").open("w+", encoding="utf-8", errors="replace") as log:
        try:
            process = subprocess.Popen(  # noqa: S603 (pip, uv or this Python)
                _tied(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        except OSError as error:
            raise SourceFailed(f"{command[0]} does not start: {error.strerror}.") from error
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK_SECONDS)
                show(before + bytes_in(folder))
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        lines = [line.strip() for line in log if line.strip() and not line.startswith(_REMARKS)]
    if process.returncode:
        reason = " ".join(lines[-_REASON_LINES:])[:_MAX_REASON_CHARS]
        raise SourceFailed(reason or f"{command[0]} ended with code {process.returncode}")


def _tied(command: list[str]) -> list[str]:
    """Return the command such that on Linux it ends when this process is killed."""
    if sys.platform != "linux":
        return command
    return [sys.executable, "-I", "-S", "-c", _END_WITH_PARENT, str(os.getpid()), *command]


def bytes_in(folder: Path) -> int:
    """Return the total size of the files in a folder that others write to; hard links count once."""
    sizes = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                status = os.lstat(os.path.join(parent, name))  # noqa: PTH118 (os.walk gives strings)
                sizes[status.st_ino] = status.st_size
    return sum(sizes.values())


@contextlib.contextmanager
def progress(name: str, size: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on standard error if it is a terminal; yield the function that sets the bytes."""
    from rich.console import Console  # noqa: PLC0415 (needed only on a terminal)
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console, hidden = Console(stderr=True), not sys.stderr.isatty()
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(name, total=size)
        yield lambda done: bar.update(task, completed=min(done, size))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
