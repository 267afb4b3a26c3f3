"""A script that asks the hub: `python hub_client_script.py list|get REPOSITORY REVISION FOLDER [FILE]`.

It runs in its own process, so that its caller can stop it at any time. If the hub does not answer within ten
seconds, it gives up. The settings of `huggingface_hub` apply: `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_TOKEN`, ...
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, logging  # type: ignore[attr-defined]

if TYPE_CHECKING:
    from collections.abc import Iterator

ANSWER_SECONDS = 10
_CHUNK_BYTES = 1 << 20
"""What a download that ends may lose; that of the client is ten times as large."""


def write_list(repository: str, revision: str, folder: Path) -> None:
    """Write the commit and the GGUF files of a repository into `files.json`."""
    with _answering():
        info = HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=ANSWER_SECONDS + 1)
    files = [
        {"name": file.rfilename, "size": file.lfs.size, "sha256": file.lfs.sha256}
        for file in info.siblings or []
        if file.rfilename.lower().endswith(".gguf") and file.lfs
    ]
    (folder / "files.json").write_text(json.dumps({"commit": info.sha, "files": files}), encoding="utf-8")


def get(repository: str, revision: str, folder: Path, file: str) -> None:
    """Download a file into a folder, after the bytes that are there."""
    url, target = hf_hub_url(repository, file, revision=revision), folder / file
    with _answering():
        size = get_hf_file_metadata(url, timeout=ANSWER_SECONDS + 1).size
    target.parent.mkdir(parents=True, exist_ok=True)
    constants.DOWNLOAD_CHUNK_SIZE = _CHUNK_BYTES
    with target.open("ab") as stream:
        if size is not None and stream.tell() > size:
            stream.truncate(0)
        http_get(url, stream, resume_size=stream.tell(), headers=build_hf_headers(), expected_size=size)


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """End the process if the hub does not answer in this scope."""
    patience = threading.Timer(ANSWER_SECONDS, _give_up)
    patience.start()
    try:
        yield
    finally:
        patience.cancel()


def _give_up() -> None:
    """End the process at once: nothing else stops the lookup of a host name."""
    os.write(sys.stderr.fileno(), f"no answer within {ANSWER_SECONDS} seconds".encode())
    signal.raise_signal(signal.SIGTERM)


_REASONS: dict[type[Exception], str] = {
    OfflineModeIsEnabled: "HF_HUB_OFFLINE is set",
    GatedRepoError: "{repository} is gated; accept its terms at {hub}/{repository}, then set HF_TOKEN",
    RepositoryNotFoundError: "the hub has no {repository}, or it is private; check the name, or set HF_TOKEN",
    RevisionNotFoundError: "{repository} has no revision {revision}; leave @{revision} out for the newest files",
    EntryNotFoundError: "{repository} has no file {file}",
}
"""What went wrong and what to do, the special errors before the general ones."""


def _reason(error: Exception, **known: str) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full; free some space, or set RLM_DSPY_MODELS to a folder on another disk"
    reasons = (text for kind, text in _REASONS.items() if isinstance(error, kind))
    return next(reasons, f"{type(error).__name__}: {{error}}").format(**known, hub=constants.ENDPOINT, error=error)


def main(order: str, repository: str, revision: str, folder: str, file: str) -> None:
    """List or download; end with the reason if that fails."""
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # its remarks on retries are not the reason
    try:
        if order == "list":
            write_list(repository, revision, Path(folder))
        else:
            get(repository, revision, Path(folder), file)
    except Exception as error:  # noqa: BLE001 (the caller reports any error and tries the next source)
        sys.exit(_reason(error, repository=repository, revision=revision, file=file))


if __name__ == "__main__":
    main(*sys.argv[1:])
