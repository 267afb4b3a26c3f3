"""Sends programs and inputs to other processes: what is large is published once, as a file, and sent by path."""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import dspy

from rlm_dspy.inputs import Text
from rlm_dspy.inputs.opening import opened

if TYPE_CHECKING:
    Shipped = tuple[dspy.Module, dict[str, Any]]
    """A program and the settings that it runs with."""

LONG_CHARS = 50_000
"""Characters from which a text is published."""
_OF_THE_HOST = frozenset(
    {"callbacks", "trace", "usage_tracker", "send_stream", "stream_listeners", "caller_modules", "caller_predict"}
)
"""Settings of DSPy that belong to the process that submits a run."""


@dataclass(frozen=True)
class Published:
    """Stands for a long text in what is sent.

    Attributes:
        path: The file that holds it.
        text: The `Text` that it is the content of, without that content; None for a `str`.
    """

    path: Path
    text: Text | None = None

    def received(self) -> str | Text:
        """Return what it stands for."""
        content = _read(self.path)
        return content if self.text is None else self.text.with_content(content)


@dataclass(frozen=True)
class SharedFolder:
    """Publishes texts and programs in a folder that all workers can read.

    Attributes:
        folder: The folder; nobody else can read it, because a program may hold the key of its LM.
    """

    folder: Path

    def publish_program(self, program: dspy.Module) -> Path:
        """Publish a program with the settings of the caller.

        Raises:
            TypeError: If it cannot be pickled.
        """
        config = dspy.settings.config.items()
        settings = {
            name: value for name, value in config if name not in _OF_THE_HOST and not name.startswith("rlm_dspy")
        }
        try:
            content = cloudpickle.dumps((program, settings))
        except Exception as error:
            raise TypeError(
                f"This program, or its LM, cannot be sent to other processes: {error}. Let it make what cannot be "
                "pickled (a lock, a connection, an open file) when it is first used, or use threads."
            ) from error
        return self._put(hashlib.sha256(content).hexdigest(), content)

    def publish(self, value: Any) -> Any:
        """Return what is sent of an input."""
        if type(value) in (list, tuple):
            return type(value)(self.publish(item) for item in value)
        if type(value) is dict:
            return {name: self.publish(item) for name, item in value.items()}
        if isinstance(value, Text) and value.path is None and len(value) >= LONG_CHARS:
            return Published(self._published(str(value)), value.with_content(""))
        if type(value) is str and len(value) >= LONG_CHARS:
            return Published(self._published(value))
        return value

    def _published(self, content: str) -> Path:
        path = self.folder / _digest(content)
        return path if path.exists() else self._put(path.name, _encoded(content))

    def _put(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        if not path.exists():
            unfinished = path.with_name(f"{name}.{os.getpid()}.{threading.get_ident()}")
            unfinished.write_bytes(content)
            unfinished.replace(path)
        return path


def identity(value: Any) -> Any:
    """Return a short form of an input for `rlm_dspy.cache.digest`: a long text or a file is its digest."""
    if type(value) in (list, tuple):
        return [identity(item) for item in value]
    if type(value) is dict:
        return {name: identity(item) for name, item in value.items()}
    if isinstance(value, Path):
        with suppress(OSError, ValueError):  # else its run says why it cannot be read
            return identity(opened(value))
    if isinstance(value, Text) and value.path is not None:
        now = value.path.stat()
        return _digest_of_file(value.path, (now.st_mtime_ns, now.st_size))
    is_text = isinstance(value, str | Text)
    return _digest(str(value)) if is_text and len(value) >= LONG_CHARS else value


def received(value: Any) -> Any:
    """Return the input that something sent stands for."""
    if isinstance(value, Published):
        return value.received()
    if type(value) in (list, tuple):
        return type(value)(received(item) for item in value)
    return {name: received(item) for name, item in value.items()} if type(value) is dict else value


@functools.lru_cache(maxsize=8)
def load_program(path: Path) -> Shipped:
    """Return a published program and its settings, loaded once per process."""
    loaded: Shipped = cloudpickle.loads(path.read_bytes())
    return loaded


@functools.lru_cache(maxsize=4)
def _read(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "surrogatepass")


def _encoded(content: str) -> bytes:
    return content.encode("utf-8", "surrogatepass")


@functools.lru_cache(maxsize=4)
def _digest(content: str) -> str:
    """Return the digest of a text; the last ones are remembered, because many examples share a context."""
    return hashlib.sha256(_encoded(content)).hexdigest()


@functools.lru_cache(maxsize=1024)
def _digest_of_file(path: Path, state: tuple[int, int]) -> str:  # noqa: ARG001 (a changed file is read again)
    return Text.open(path).digest()[1]
