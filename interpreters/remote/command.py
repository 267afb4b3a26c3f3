"""A command of this machine that carries the stream to a far end."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlm_dspy.interpreters.remote.boot import BOOT, modules
from rlm_dspy.interpreters.remote.carrier import LastWords

if TYPE_CHECKING:
    from collections.abc import Sequence

_END_SECONDS = 8


class _Running:
    """A command of this machine that runs and carries the stream.

    Args:
        name: What users know it as.
        command: Its words.
    """

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        theirs_in, self.writes = os.pipe()
        self.reads, theirs_out = os.pipe()
        self._words = LastWords()
        try:
            self._process = subprocess.Popen(  # noqa: S603 (what the user has named)
                command,
                stdin=theirs_in,
                stdout=theirs_out,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # Ctrl-C is for the host alone
            )
        except OSError:
            os.close(self.reads)
            os.close(self.writes)
            raise
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        self._listener = threading.Thread(target=self._listen, name="rlm-stderr", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stderr:
            for line in stderr:
                self._words.add(line)

    def last_words(self) -> str:
        """Return the last lines that it printed to stderr."""
        return self._words.after(self._listener)

    def end(self) -> None:
        """Wait for its end, and kill it if that does not come."""
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # and what it has started
            self._process.wait()


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of this machine that runs another one, whose stdin and stdout it carries."""

    words: tuple[str, ...]
    """Its words; without any, the other command runs on this machine."""
    python: str
    """The Python to run there."""
    shell: bool
    """Whether a shell reads the words of the other command, as ssh's does."""

    @property
    def hint(self) -> str:
        """What may be wrong if there is no connection."""
        if len(self.words) == 1 and " " in self.words[0]:
            return ". The words of the command are arguments of their own: remote.argv('ssh', 'lab', shell=True)."
        is_ssh = Path(*self.words[:1]).name == "ssh"
        return ". A shell reads what follows ssh: pass shell=True." if is_ssh and not self.shell else ""

    def open(self) -> _Running:
        """Run the far end.

        Raises:
            OSError: If the command cannot be run.
        """
        boot = [self.python, "-c", BOOT, str(len(modules()))]
        name = " ".join(self.words) if len(self.words) < 3 else f"{self.words[0]} ... {self.words[-1]}"  # noqa: PLR2004
        return _Running(name or self.python, [*self.words, *([shlex.join(boot)] if self.shell else boot)])
