"""Keeps the last runs of `rlm-dspy ask`, each as an event log of its own in the user's state folder."""

from __future__ import annotations

import contextlib
import json
import os
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlm_dspy.cli.errors import tell
from rlm_dspy.errors import UsageError
from rlm_dspy.text import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNS_VARIABLE = "RLM_DSPY_HISTORY"
_MAX_BYTES = 200_000_000
"""The maximum size of all runs together."""
_OFF = f"--no-history, {RUNS_VARIABLE}=0 or history = 0 in the configuration file turns the history off."


def history_folder() -> Path:
    """Return the folder of the runs: `rlm-dspy/history` in `XDG_STATE_HOME`, else in `~/.local/state`."""
    base = Path(os.environ.get("XDG_STATE_HOME") or "")
    return (base if base.is_absolute() else Path.home() / ".local" / "state") / "rlm-dspy" / "history"


def kept_runs() -> list[Path]:
    """Return the logs of the runs, the newest first."""
    return sorted(history_folder().glob("*.jsonl"), reverse=True)


def kept_run(number: int) -> Path:
    """Return the log of a run by its number; 1 is the newest.

    Raises:
        UsageError: If there is no such run.
    """
    runs = kept_runs()
    if not 1 <= number <= len(runs):
        has = f"has {counted(len(runs), 'run')}" if runs else f"is empty ({history_folder()})"
        raise UsageError(f"No run {number}: the history {has}. See rlm-dspy history.")
    return runs[number - 1]


def runs_to_keep(configured: int) -> int:
    """Return how many runs to keep: as `RLM_DSPY_HISTORY` says, else as configured.

    Raises:
        UsageError: If the variable is not a number.
    """
    chosen = os.environ.get(RUNS_VARIABLE)
    if chosen and not chosen.isdecimal():
        raise UsageError(f"{RUNS_VARIABLE} must be a number of runs to keep, 0 for none, not {chosen!r}.")
    return int(chosen) if chosen else configured


@contextlib.contextmanager
def keep_in_history(question: str, files: list[str], most: int) -> Iterator[None]:
    """Log the run in this scope, and delete the oldest runs at its end.

    Args:
        question: The question, for the list of runs.
        files: The files it is about.
        most: The number of runs to keep; 0 keeps none of the new ones and deletes nothing.
    """
    from rlm_dspy.json_values import JsonLines
    from rlm_dspy.observe.event_log import VERSION, RunLog
    from rlm_dspy.redaction import without_credentials

    path = history_folder() / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{os.getpid()}.jsonl"
    log: RunLog | None = None
    if most:
        asked = {"v": VERSION, "event": "asked", "question": question, "files": files}
        line = without_credentials(json.dumps(asked, ensure_ascii=False))
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            JsonLines(path).append(line)
            log = RunLog(path)
        except OSError as error:
            tell(f"Not kept in the history: {error}. {_OFF}")
    try:
        with log or contextlib.nullcontext():
            yield
    finally:
        if log:
            with contextlib.suppress(OSError):
                if len(_ends(path)) == 1:  # no run was started
                    path.unlink()
                _prune(most)


def _prune(most: int) -> None:
    """Delete the oldest runs until the rest is within the limits."""
    size = 0
    for number, path in enumerate(kept_runs(), start=1):
        size += path.stat().st_size
        if number > most or size > _MAX_BYTES:
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Kept:
    """The entry of a run in the list.

    Attributes:
        question: The question.
        files: The files it is about.
        model: The model of the turns.
        at: Its start in ISO 8601; empty if the log is damaged.
        stop: As in `Record.stop`; empty if the log has no end.
    """

    question: str = ""
    files: tuple[str, ...] = ()
    model: str = ""
    at: str = ""
    stop: str = ""


def beginning_of(path: Path) -> Kept:
    """Return the entry of a run in the list; read only three lines of its log."""
    nothing: list[dict[str, Any]] = [{}, {}, {}]
    asked, started, last, *_ = _ends(path) + nothing
    return Kept(
        asked.get("question", ""),
        tuple(asked.get("files", ())),
        started.get("model", ""),
        started.get("at", ""),
        last.get("stop", ""),
    )


def _ends(path: Path) -> list[dict[str, Any]]:
    """Return the first two events of a log and the last one, as far as they exist."""
    with path.open("rb") as file:
        lines = [file.readline(), file.readline(), *deque(file, 1)]
    events = []
    for line in lines:
        with contextlib.suppress(ValueError):  # cut off because its process was killed
            events.append(json.loads(line))
    return events
