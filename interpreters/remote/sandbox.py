"""A far end in a sandbox of a service: made, carried over the streams of the service's client, and deleted."""

from __future__ import annotations

import atexit
import importlib.util
import logging
import math
import os
import threading
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from rlm_dspy.interpreters.remote import armor
from rlm_dspy.interpreters.remote.boot import BOOT, modules
from rlm_dspy.interpreters.remote.carrier import LastWords

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_logger = logging.getLogger("dspy.rlm_dspy")

_DELETE_PAUSES = (0, 1, 4)
"""Seconds before each attempt to delete a sandbox."""


class Streams(NamedTuple):
    """A command in a sandbox."""

    send: Callable[[bytes], object]
    """Writes to its stdin."""
    listen: Callable[[Callable[[bytes], None], Callable[[str], None]], object]
    """Calls the first function with output from stdout, the second with output from stderr, until both end."""


@dataclass(frozen=True, kw_only=True)
class Service(ABC):
    """Makes sandboxes of a service."""

    name: ClassVar[str]
    client: ClassVar[str]
    """The module of its client."""
    keys: ClassVar[str]
    """The environment variables that the client reads its key from."""
    armored: ClassVar[bool] = False
    """Whether the client's streams take text only."""
    hint: ClassVar[str] = ""

    python: str
    """The Python to run there."""
    timeout: int
    """Seconds after which the service ends a sandbox by itself."""
    create: Mapping[str, Any] = field(hash=False)
    """Further arguments of the client's call that makes a sandbox."""

    def __post_init__(self) -> None:
        if self.timeout <= 0:
            raise ValueError(
                f"timeout is {self.timeout}: a sandbox must end by itself, in case this process cannot."
            )
        if importlib.util.find_spec(self.client) is None:
            extra = type(self).__name__.lower()
            raise ImportError(
                f"remote.{extra} needs the extra `{extra}`: pip install 'dspy-recursive-lm[{extra}]' "
                f"(in the checkout: uv sync --extra {extra})"
            )

    @property
    def minutes(self) -> int:
        """The timeout, for clients that count in minutes."""
        return math.ceil(self.timeout / 60)

    def open(self) -> Sandbox:
        """Make a sandbox and start the far end in it.

        Raises:
            ConnectionError: If that fails. The sandbox is deleted then.
        """
        program = Path(armor.__file__).read_text("utf-8") + "\ninstall()\n" + BOOT if self.armored else BOOT
        with ExitStack() as undo:
            try:
                streams = self.start([self.python, "-c", program, str(len(modules()))], undo)
            except Exception as error:  # of classes of the client
                raise ConnectionError(
                    f"{self.name} has started no sandbox: {type(error).__name__}: {error}. "
                    f"Its client takes the key from {self.keys}."
                ) from error
            sandbox = Sandbox(self.name, streams, armored=self.armored)
            sandbox.undo = undo.pop_all()
        return sandbox

    @abstractmethod
    def start(self, words: Sequence[str], undo: ExitStack) -> Streams:
        """Make a sandbox, whose deletion goes to `undo` at once, and run a command in it."""

    def deletes(self, undo: ExitStack, delete: Callable[[], object]) -> None:
        """Register the deletion of a sandbox in `undo`. It is retried; a failure is logged."""

        def surely() -> None:
            for pause in _DELETE_PAUSES:
                time.sleep(pause)
                try:
                    delete()
                except Exception as error:  # noqa: BLE001 (of classes of the client)
                    reason = error
                else:
                    return
            _logger.warning(
                "A sandbox of %s could not be deleted: %s. It ends by itself %d seconds after its start.",
                self.name,
                reason,
                self.timeout,
            )

        undo.callback(surely)


class Sandbox:
    """A far end in a sandbox, with a pipe in place of its stdin and another in place of its stdout.

    Args:
        name: Its name for users.
        streams: Its streams.
        armored: Whether the streams take text only.
    """

    def __init__(self, name: str, streams: Streams, *, armored: bool) -> None:
        self.name = name
        self.undo = ExitStack()
        """Deletes it."""
        self._streams, self._armored = streams, armored
        self._owner = os.getpid()
        self._ending = threading.Lock()
        self._words = LastWords()
        to_send, self.writes = os.pipe()
        self.reads, heard = os.pipe()
        import fcntl  # noqa: PLC0415 (missing on other systems)

        with suppress(OSError):  # each piece is a request to the service, so large pieces need fewer requests
            fcntl.fcntl(self.writes, fcntl.F_SETPIPE_SZ, armor.PIECE)
        threading.Thread(target=self._send, args=(to_send,), name="rlm-sandbox", daemon=True).start()
        self._listener = threading.Thread(target=self._listen, args=(heard,), name="rlm-sandbox", daemon=True)
        self._listener.start()
        atexit.register(self.end)  # before the client closes its connections

    def _send(self, source: int) -> None:
        with self._to_the_end(source):
            while piece := os.read(source, armor.PIECE):
                self._streams.send(armor.line_of(piece, armor.NEAR) if self._armored else piece)

    def _listen(self, sink: int) -> None:
        lines = armor.Lines(armor.FAR)

        def heard(text: bytes) -> None:
            for piece in lines.pieces(text) if self._armored else (text,):
                armor.write(sink, piece)

        with self._to_the_end(sink):
            self._streams.listen(heard, self._words.add)

    def _to_the_end(self, pipe: int) -> ExitStack:
        """Close a pipe afterwards; an error of the client's goes to the last words."""
        stack = ExitStack()
        stack.callback(os.close, pipe)

        def note(_kind: object, error: BaseException | None, _traceback: object) -> bool:
            if error is not None:
                self._words.add(str(error))
            return isinstance(error, Exception)

        stack.push(note)
        return stack

    def last_words(self) -> str:
        """Return the last lines that it printed to stderr, and why the client has stopped."""
        return self._words.after(self._listener)

    def end(self) -> None:
        """Delete it, and return when that is done, whichever thread does it."""
        if self._owner != os.getpid():
            return
        with self._ending:
            self.undo.close()
        atexit.unregister(self.end)
