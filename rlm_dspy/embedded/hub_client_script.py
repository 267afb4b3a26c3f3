"""A script that downloads a file from the hub: `python hub_client_script.py REPOSITORY FILE FOLDER`.

It runs in its own process, so that its caller can stop it at any time. If the hub does not answer within ten
seconds, it gives up. The settings of `huggingface_hub` apply: `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_TOKEN`, ...
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import OfflineModeIsEnabled

ANSWER_SECONDS = 10


def main(repository: str, file: str, folder: str) -> None:
    """Download a file of a repository into a folder; end the process if the hub does not answer."""
    patience = threading.Timer(ANSWER_SECONDS, _give_up)
    patience.start()
    try:
        get_hf_file_metadata(hf_hub_url(repository, file), timeout=ANSWER_SECONDS + 1)
    finally:
        patience.cancel()
    hf_hub_download(repository, file, local_dir=folder)


def _give_up() -> None:
    """End the process at once: nothing else stops the lookup of a host name."""
    os.write(sys.stderr.fileno(), f"no answer within {ANSWER_SECONDS} seconds".encode())
    signal.raise_signal(signal.SIGTERM)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except OfflineModeIsEnabled:
        sys.exit("HF_HUB_OFFLINE is set")
    except Exception as error:  # noqa: BLE001 (the caller reports any error and tries the next source)
        sys.exit(f"{type(error).__name__}: {error}")
