"""A script that downloads a file from the hub: `python hub_download.py REPOSITORY FILE FOLDER`.

It runs in a process of its own, so that its caller can end it at any moment. If the hub has not answered after ten
seconds, it gives up. The settings of `huggingface_hub` apply: `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_TOKEN`, ...
"""

from __future__ import annotations

import queue
import sys
import threading

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import OfflineModeIsEnabled

ANSWER_SECONDS = 10


def main(repository: str, file: str, folder: str) -> None:
    """Download a file of a repository into a folder; exit with a reason if there is no answer."""
    answers: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
    # In a thread that the exit does not wait for: nothing else ends the look-up of a host's name.
    threading.Thread(target=_ask, args=(hf_hub_url(repository, file), answers), daemon=True).start()
    try:
        error = answers.get(timeout=ANSWER_SECONDS)
    except queue.Empty:
        sys.exit(f"no answer within {ANSWER_SECONDS} seconds")
    if error is not None:
        raise error
    hf_hub_download(repository, file, local_dir=folder)


def _ask(url: str, answers: queue.SimpleQueue[Exception | None]) -> None:
    """Ask for what the hub knows of a file; hand over what went wrong, or None."""
    try:
        get_hf_file_metadata(url, timeout=ANSWER_SECONDS + 1)
    except Exception as error:  # noqa: BLE001 (raised where it is handed over to)
        answers.put(error)
    else:
        answers.put(None)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except OfflineModeIsEnabled:
        sys.exit("HF_HUB_OFFLINE is set")
    except Exception as error:  # noqa: BLE001 (whatever it is, the caller tells it and asks elsewhere)
        sys.exit(f"{type(error).__name__}: {error}")
