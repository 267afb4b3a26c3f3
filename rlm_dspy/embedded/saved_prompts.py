"""Keeps on disk what llama.cpp computed of the beginnings that conversations share, for all processes.

The beginning of a conversation is all but the last message of its first request: instructions and demos. To read
2,000 tokens takes a small model seconds to minutes; to restore its state takes milliseconds. The documents and
questions of a run are in later messages, and never in these files.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import threading
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from rlm_dspy.embedded.model_cache import prompts_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Ask = Callable[[str, "Chat"], "Chat"]

Chat = dict[str, Any]

SIZE_VARIABLE = "RLM_DSPY_SAVED_PROMPTS"

_DEFAULT_MEGABYTES = 500
_LEAST_CHARS = 1_000
"""Of a beginning that is worth a file: some 300 tokens, 7 MB with SmolLM2-135M."""
_REQUESTS = 1_024
"""Requests that are remembered, to tell a later turn from a new conversation."""
_WAIT_SECONDS = 0.2
_SUFFIX = ".state"


def most_bytes() -> int:
    """Return the largest total size of the files: `RLM_DSPY_SAVED_PROMPTS` in megabytes, by default 500; 0 is off.

    Raises:
        ValueError: If the variable is not a number.
    """
    chosen = os.environ.get(SIZE_VARIABLE, "").strip() or str(_DEFAULT_MEGABYTES)
    if not chosen.isdecimal():
        raise ValueError(f"{SIZE_VARIABLE} must be a number of megabytes, 0 to keep none; not {chosen!r}.")
    return int(chosen) * 1_000_000


class PromptFiles:
    """The files of one model. Processes may share them: a file is complete, and never changes.

    The name of a file ends with the checksum of its bytes, which is verified before each use: llama.cpp ends the
    process if a file is torn.

    Args:
        folder: Where to keep them; made if it does not exist.
        most_bytes: Largest total size of the files of all models; the least recently used are deleted.

    Raises:
        OSError: If the folder cannot be made.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self._most_bytes = most_bytes

    def find(self, key: str) -> str | None:
        """Return the name of the file of this key; None if there is none. A damaged one is deleted."""
        for path in self.folder.glob(f"{key}.*{_SUFFIX}"):
            with suppress(OSError):  # another process deleted it
                if path.name == self._name(key, path):
                    os.utime(path)
                    return path.name
                path.unlink()
        return None

    def keep(self, key: str, written: str) -> None:
        """Give a written file its name, and delete the least recently used ones over the largest size."""
        with suppress(OSError):
            path = self.folder / written
            path.replace(self.folder / self._name(key, path))
            self._evict()

    def discard(self, written: str) -> None:
        """Delete what was written in vain."""
        with suppress(OSError):
            (self.folder / written).unlink(missing_ok=True)

    @staticmethod
    def _name(key: str, path: Path) -> str:
        with path.open("rb") as file:
            return f"{key}.{hashlib.file_digest(file, 'sha256').hexdigest()}{_SUFFIX}"

    def _evict(self) -> None:
        """Files that a killed process left half written, or that are not ours, count and go too."""
        files = [(path.stat(), path) for path in self.folder.parent.glob("*/*") if path.is_file()]
        total = 0
        for status, path in sorted(files, key=lambda file: file[0].st_mtime, reverse=True):
            total += status.st_size
            if total > self._most_bytes:
                path.unlink(missing_ok=True)


def files_of(model: str) -> PromptFiles | None:
    """Return the files of the model of this name; None if they are turned off or the folder cannot be written.

    Raises:
        ValueError: If `RLM_DSPY_SAVED_PROMPTS` is not a number.
    """
    limit = most_bytes()
    with suppress(OSError):
        return PromptFiles(prompts_folder(model), limit) if limit else None
    return None


class Beginnings:
    """Reads the beginning of each new conversation, from its file or once by the model.

    Args:
        files: Where they are kept.
        model: What tells the model's file from all others.
    """

    def __init__(self, files: PromptFiles, model: str) -> None:
        self._files = files
        self._salt = f"{model} xllamacpp {importlib.metadata.version('xllamacpp')}"
        self._requests: deque[str] = deque(maxlen=_REQUESTS)
        self._locks: dict[str, threading.Lock] = {}
        self._read: set[str] = set()
        self._running = 0
        self._counting = threading.Lock()

    @contextmanager
    def prepared(self, messages: list[Chat], ask: Ask, abandoned: threading.Event) -> Iterator[int]:
        """Have a slot of the server begin as this conversation does, and yield the tokens that were read for that.

        Conversations that begin alike at the same time wait for the first one to read it. Where the server
        refuses, the request itself is answered as without this.

        Args:
            messages: Of a request of OpenAI's API, which is sent within the block.
            ask: Sends a body to a path of the server and returns its answer.
            abandoned: Set when nobody waits for the reply any more.
        """
        with self._counting:
            self._running += 1
        try:
            yield self._prepare(messages, ask, abandoned)
        finally:
            with self._counting:
                self._running -= 1

    def _prepare(self, messages: list[Chat], ask: Ask, abandoned: threading.Event) -> int:
        *beginnings, whole = ["", *self._digests(messages)]
        is_later_turn = any(digest in self._requests for digest in beginnings)
        self._requests.append(whole)
        if is_later_turn or len(json.dumps(messages[:-1])) < _LEAST_CHARS:
            return 0
        key = beginnings[-1]
        lock = self._locks.setdefault(key, threading.Lock())
        while not lock.acquire(timeout=_WAIT_SECONDS):
            if abandoned.is_set():
                return 0
        try:
            return self._begin(key, messages[:-1], ask)
        finally:
            lock.release()

    def _digests(self, messages: list[Chat]) -> Iterator[str]:
        """Yield the digest of each beginning of the messages, the shortest first."""
        digest = hashlib.sha256(self._salt.encode())
        for message in messages:
            digest.update(json.dumps(message).encode() + b"\n")
            yield digest.hexdigest()[:32]

    def _begin(self, key: str, messages: list[Chat], ask: Ask) -> int:
        """Restore a beginning, or have it read and save it."""
        if key in self._read and self._running == 1:
            return 0  # an idle slot has it, or llama.cpp's cache in memory
        if (file := self._files.find(key)) and self._restore(file, ask):
            self._read.add(key)
            return 0
        prompt = ask("/apply-template", {"messages": messages, "add_generation_prompt": False}).get("prompt")
        done = ask("/completion", {"prompt": prompt, "n_predict": 0}) if prompt else {}
        if "id_slot" not in done:  # a template that needs a question, or a window that is too small
            return 0
        self._read.add(key)
        self._save(key, done, ask)
        return int(done["timings"]["prompt_n"])

    def _restore(self, file: str, ask: Ask) -> bool:
        """Restore a file into the least recently used slot, whose conversation llama.cpp then keeps in memory."""
        claimed = ask("/completion", {"prompt": " ", "n_predict": 0})
        if "id_slot" not in claimed:
            return False
        restored = ask(f"/slots/{claimed['id_slot']}?action=restore", {"filename": file})
        return "n_restored" in restored

    def _save(self, key: str, done: Chat, ask: Ask) -> None:
        written = f"{key}.{os.getpid()}-{threading.get_ident()}.part"
        saved = ask(f"/slots/{done['id_slot']}?action=save", {"filename": written})
        if saved.get("n_saved") == done["tokens_evaluated"]:
            self._files.keep(key, written)
        else:  # the disk is full, or another conversation got the slot meanwhile
            self._files.discard(written)
