"""Turns the MLflow tracing of RLM runs on and off."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import TYPE_CHECKING, Any

import dspy
import mlflow

from rlm_dspy.budget.metered_lm import open_door
from rlm_dspy.tracing._mlflow_compat import MlflowCallback, revert_patches
from rlm_dspy.tracing.callback import SpanCallback
from rlm_dspy.tracing.export_queue import answers, outbox
from rlm_dspy.tracing.mlflow_runs import logging_shortly
from rlm_dspy.tracing.payloads import Secrets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_DEFAULTS = {
    "MLFLOW_TRACE_BUFFER_TTL_SECONDS": str(7 * 24 * 3600),  # traces that take longer are dropped
    "MLFLOW_ASYNC_TRACE_LOGGING_MAX_SPAN_BATCH_SIZE": "100",  # spans that are stored together
    "MLFLOW_ASYNC_TRACE_LOGGING_MAX_INTERVAL_MILLIS": "1000",  # how old they get until then
}
"""What MLflow's own settings are, unless the environment says otherwise."""
_in_force = contextlib.ExitStack()
"""Puts back what the last `autolog` has changed."""
known_secrets = Secrets()
"""What no span, parameter or model may hold."""


def autolog(
    *,
    log_traces: bool = True,
    log_compiles: bool = True,
    log_evals: bool = True,
    store: str | None = None,
    experiment: str | None = None,
    disable: bool = False,
    **others: Any,
) -> None:
    """Log every run from here on to MLflow; takes the place of `mlflow.dspy.autolog()`.

    May be called again, also after `dspy.configure(callbacks=[...])`, which takes MLflow out of DSPy's callbacks
    without a word. Callbacks of others stay.

    Args:
        log_traces: Log calls as traces.
        log_compiles: Log what optimizers do as runs of MLflow.
        log_evals: Log what `dspy.Evaluate` does as runs of MLflow.
        store: The tracking URI: `sqlite:///mlflow.db`, `http://...`; by default MLflow's own.
        experiment: The experiment to log to, unless `MLFLOW_EXPERIMENT_NAME` or `MLFLOW_EXPERIMENT_ID` names one.
        disable: End the logging, MLflow's own of DSPy too, and put back all that was changed for it.
        **others: Further arguments of `mlflow.dspy.autolog`.
    """
    callbacks = dspy.settings.callbacks
    own = next((callback for callback in callbacks if isinstance(callback, SpanCallback)), None)
    rest = [callback for callback in callbacks if not isinstance(callback, MlflowCallback)]
    _in_force.close()
    if disable:
        dspy.configure(callbacks=rest)
        mlflow.dspy.autolog(disable=True, **others)
        revert_patches(mlflow.dspy.autolog.integration_name)  # MLflow puts its patches on also when it is disabled
        return
    open_door()  # so that it is known what LMs report outside of runs, too
    own = own or SpanCallback(known_secrets)
    dspy.configure(callbacks=[*rest, own])
    _in_force.enter_context(_settings())
    _in_force.enter_context(logging_shortly(own.payloads, known_secrets))
    flags = {"log_traces": log_traces, "log_compiles": log_compiles, "log_evals": log_evals}
    mlflow.dspy.autolog(**flags, **others)
    if store is not None:
        mlflow.set_tracking_uri(store)
    if experiment is not None and not (os.environ.keys() & {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"}):
        _set_experiment(experiment)


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Have MLflow, DSPy and alembic set as logging needs it in this scope."""
    new = {name: value for name, value in _DEFAULTS.items() if name not in os.environ}
    alembic, tracked = logging.getLogger("alembic"), dspy.settings.track_usage
    level = alembic.level
    os.environ.update(new)
    alembic.setLevel(logging.WARNING)  # it tells the making of a store in fifty lines
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)
        alembic.setLevel(level)
        dspy.configure(track_usage=tracked)  # MLflow turns it on


@contextlib.contextmanager
def logged_run(name: str, status: Callable[[], str] = lambda: "FINISHED") -> Iterator[None]:
    """Open a run of MLflow in this scope: its page shows the traces made in it, and the reports on them.

    Without one, reports are files of their traces, which MLflow's page offers for download. If the store is a
    server that does not answer, none is opened.

    Args:
        name: What the run is called.
        status: Returns how it ended: `FINISHED`, `FAILED` or `KILLED`. It is `KILLED` if it is interrupted, and
            `FAILED` if another error leaves the scope.
    """
    uri = mlflow.get_tracking_uri()
    if uri.startswith("http") and not answers(uri):
        yield
        return
    with mlflow.start_run(run_name=name):
        try:
            yield
        except (KeyboardInterrupt, asyncio.CancelledError):
            mlflow.end_run("KILLED")
            raise
        mlflow.end_run(status())


def _set_experiment(name: str) -> None:
    """Log to an experiment; if the store is a server that does not answer, from when it does."""
    uri = mlflow.get_tracking_uri()
    if not uri.startswith("http") or answers(uri):
        mlflow.set_experiment(name)
    elif (box := outbox()) is not None:
        box.close(then=lambda: mlflow.set_experiment(name))
