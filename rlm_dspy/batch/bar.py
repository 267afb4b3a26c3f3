"""Shows how far a batch is: a bar with rate, cost and the time that is left."""

from __future__ import annotations

import time
from datetime import timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

if TYPE_CHECKING:
    from rlm_dspy.batch.store import Row

_MINUTE = 60


class Bar:
    """A progress bar on stderr, shown on terminals and, if ipywidgets is installed, in notebooks.

    Args:
        total: The number of examples; None if it is not known.
        shown: Whether it is shown.
    """

    def __init__(self, total: int | None, *, shown: bool) -> None:
        console = Console(stderr=True)
        columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}")
        in_notebook = console.is_jupyter and find_spec("ipywidgets") is not None
        hidden = not (shown and (console.is_terminal or in_notebook))
        self._progress = Progress(*columns, console=console, disable=hidden)
        self._task = self._progress.add_task("", total=total)
        self._total, self._began = total, time.monotonic()
        self._rows = self._new = self._failed = 0
        self._cost: float | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def add(self, row: Row) -> None:
        """Count a row."""
        self._rows += 1
        self._failed += bool(row.error)
        self._new += not row.stored
        if row.usage.cost is not None and not row.stored:
            self._cost = (self._cost or 0.0) + row.usage.cost
        self._progress.update(self._task, completed=self._rows, description=self.told(time.monotonic()))

    def told(self, now: float) -> str:
        """Return what stands beside the bar, at a time of `time.monotonic`."""
        rate = self._new / max(now - self._began, 1e-6)
        parts = [f"{rate * _MINUTE:.3g} a minute"]
        if self._cost is not None:
            parts.append(f"${self._cost:.2f}")
        if self._failed:
            parts.append(f"{self._failed} failed")
        if self._total is not None and rate and (left := self._total - self._rows):
            parts.append(f"{timedelta(seconds=round(left / rate))} left")
        return ", ".join(parts)
