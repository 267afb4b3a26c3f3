"""Runs a program on one example, in this process or in another one, and returns the outcome."""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import cloudpickle
import dspy

from rlm_dspy.batch.shared_budget import LeasedLedger, SharedBudget
from rlm_dspy.batch.shipping import load_program, received
from rlm_dspy.budget.ledger import Ledger
from rlm_dspy.budget.metered_lm import metered
from rlm_dspy.errors import LimitExceeded, RLMError
from rlm_dspy.json_values import jsonable
from rlm_dspy.limits import Limits
from rlm_dspy.usage import RunUsage

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from rlm_dspy.optimize.traced_runs import Call

ENDED = ".ended"
"""How the file of an outcome ends, which is named like the mark of its run."""
_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Outcome:
    """What came of one run.

    Attributes:
        prediction: What the program returned; None if it raised.
        error: What it raised.
        usage: What its model calls used, also of a run that failed.
        refusal: Why the budget of the batch refused a call; None if it refused none.
        trace: The calls of its predictors, each named as in `named_predictors`; None if it ran in this process.
        reported: The usage that DSPy's tracker collected, by model; empty if it ran in this process.
    """

    prediction: Any = None
    error: BaseException | None = None
    usage: RunUsage = field(default_factory=RunUsage)
    refusal: LimitExceeded | None = None
    trace: tuple[Call, ...] | None = None
    reported: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True)
class RemoteRun:
    """One run as it is sent to another process.

    Attributes:
        program: The file of the program.
        inputs: The inputs, with long texts published.
        budget: The budget of the batch.
        mark: A file that is made when the run begins; None for no mark.
        traced: Whether trace and reported usage are returned.
    """

    program: Path
    inputs: Mapping[str, Any]
    budget: SharedBudget | None = None
    mark: Path | None = None
    traced: bool = False

    def perform(self) -> Outcome:
        """Run it in this process."""
        if self.mark is not None:
            self.mark.touch()
        program, settings = load_program(self.program)
        with dspy.context(**settings, trace=[]), dspy.track_usage() as tracker:
            outcome = attempt(program, received(self.inputs), self.budget)
            names = {id(predictor): name for name, predictor in program.named_predictors()}
            trace = [(names.get(id(call[0]), call[0]), *call[1:]) for call in dspy.settings.trace]
        return replace(outcome, trace=tuple(trace), reported=dict(tracker.usage_data)) if self.traced else outcome


def attempt(program: dspy.Module, inputs: Mapping[str, Any], budget: SharedBudget | None = None) -> Outcome:
    """Run a program, within the budget of its batch, and count what it uses."""
    ledger = Ledger(Limits()) if budget is None else LeasedLedger(budget)
    prediction, error = None, None
    try:
        with metered(ledger, "run", raw=True) as meter:
            prediction = program(**inputs)
    except BaseException as raised:  # noqa: BLE001 (it is the outcome, also if a library has called `sys.exit`)
        error = None if raised is meter.refusal and prediction is not None else raised
    if isinstance(ledger, LeasedLedger):
        ledger.give_back_lease()
    return Outcome(prediction, error, ledger.usage(), meter.refusal)


def perform(run: bytes) -> bytes:
    """Run a pickled `RemoteRun` in a worker; return its pickled `Outcome`, and keep it in a file beside the mark.

    These are bytes because executors pickle by reference, which fails for what a script defines itself. The file
    is read if another worker dies while the outcome is on its way: a broken pool drops it.
    """
    _end_without_parent()
    remote: RemoteRun = cloudpickle.loads(run)
    outcome = remote.perform()
    try:
        content = cloudpickle.dumps(outcome)
        if outcome.error is not None:  # it may be pickled and yet not be made again
            cloudpickle.loads(content)
    except Exception:  # noqa: BLE001 (values of user code may raise anything)
        content = cloudpickle.dumps(plain(outcome))
    if remote.mark is not None:
        with suppress(OSError):
            unfinished = remote.mark.with_suffix(".unfinished")
            unfinished.write_bytes(content)
            unfinished.replace(remote.mark.with_suffix(ENDED))
    return bytes(content)


def _end_without_parent() -> None:
    """End this worker of a pool if its parent was killed: nobody would store the results that it pays for."""
    if (parents := _parents()) is None:
        return
    parent, starter = parents
    with suppress(ProcessLookupError):
        os.kill(parent, 0)
        if os.getppid() == starter:
            return
    os._exit(1)


@functools.cache
def _parents() -> tuple[int, int] | None:
    """Return the process ids of the parent of this pool worker, and of the process that started the worker.

    The latter is the parent, or a fork server that may outlive it. The parent is watched from now on. None if this
    process is not a worker of a pool.
    """
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None or sys.platform == "win32":  # there a signal to look ends a process
        return None

    def watch() -> None:
        while True:
            time.sleep(_LOOK_SECONDS)
            _end_without_parent()

    threading.Thread(target=watch, name="rlm-parent", daemon=True).start()
    return parent.pid, os.getppid()


def plain(outcome: Outcome) -> Outcome:
    """Return an outcome that can be pickled: with plain data, and with the words of the error."""
    if outcome.error is not None:
        error = RLMError(f"{type(outcome.error).__name__}: {outcome.error}")
        error.trajectory = jsonable(getattr(outcome.error, "trajectory", []))  # type: ignore[attr-defined]
        return Outcome(error=error, usage=outcome.usage, refusal=outcome.refusal)
    found = outcome.prediction
    data = jsonable(dict(found.items()) if isinstance(found, dspy.Prediction) else found)
    return Outcome(dspy.Prediction(data) if isinstance(found, dspy.Prediction) else data, usage=outcome.usage)
