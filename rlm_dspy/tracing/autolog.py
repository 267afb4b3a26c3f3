"""Turns the MLflow tracing of RLM runs on and off."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import TYPE_CHECKING, Any

import dspy
import mlflow
from sqlalchemy.exc import SQLAlchemyError

from rlm_dspy.budget.metered_lm import intercept_lm_calls
from rlm_dspy.text import one_line
from rlm_dspy.tracing._mlflow_compat import MlflowCallback, revert_patches
from rlm_dspy.tracing.callback import SpanCallback
from rlm_dspy.tracing.export_queue import answers, installed_queue
from rlm_dspy.tracing.mlflow_runs import logging_shortly
from rlm_dspy.tracing.payloads import Secrets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_DEFAULTS = {
    "MLFLOW_TRACE_BUFFER_TTL_SECONDS": str(7 * 24 * 3600),  # traces that take longer are dropped
    "MLFLOW_ASYNC_TRACE_LOGGING_MAX_SPAN_BATCH_SIZE": "100",  # spans stored per batch
    "MLFLOW_ASYNC_TRACE_LOGGING_MAX_INTERVAL_MILLIS": "1000",  # maximum age of a batch
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # else each request to a server that is away takes 4 minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # seconds
}
"""MLflow settings that apply unless the environment sets them."""
_in_force = contextlib.ExitStack()
"""Undoes the changes of the last `autolog`."""
known_secrets = Secrets()
"""Secrets that no span, parameter or model may contain."""


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
    """Log every later run to MLflow; replaces `mlflow.dspy.autolog()`.

    Call it again after `dspy.configure(callbacks=[...])`, which silently removes MLflow's callback. Other
    callbacks stay.

    Args:
        log_traces: Log calls as traces.
        log_compiles: Log optimizer runs as MLflow runs.
        log_evals: Log evaluations by `dspy.Evaluate` as MLflow runs.
        store: The tracking URI: `sqlite:///mlflow.db`, `http://...`; default: MLflow's own.
        experiment: The experiment to log to, unless `MLFLOW_EXPERIMENT_NAME` or `MLFLOW_EXPERIMENT_ID` names one.
        disable: Stop logging, including MLflow's own logging of DSPy, and undo all changes.
        **others: Further arguments of `mlflow.dspy.autolog`.

    Raises:
        ValueError: If `store` cannot be opened (a server need not respond yet), and nothing is changed; or if the
            experiment cannot be created there.
    """
    if store is not None and not disable:
        check_store(store)
    callbacks = dspy.settings.callbacks
    own = next((callback for callback in callbacks if isinstance(callback, SpanCallback)), None)
    rest = [callback for callback in callbacks if not isinstance(callback, MlflowCallback)]
    _in_force.close()
    if disable:
        dspy.configure(callbacks=rest)
        mlflow.dspy.autolog(disable=True, **others)
        revert_patches(mlflow.dspy.autolog.integration_name)  # MLflow patches even when it is disabled
        return
    intercept_lm_calls()  # to know the reported usage of LMs outside runs too
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


def check_store(store: str) -> None:
    """Open a store, to reject an invalid one here and not in each run.

    Raises:
        ValueError: If it cannot be opened; the message names the fix.
    """
    try:
        with _settings():
            mlflow.MlflowClient(tracking_uri=store)
    except (mlflow.MlflowException, SQLAlchemyError, ImportError) as error:
        path = "mlflow.db" if "://" in store else store
        shown = store.rpartition("@")[2]
        raise ValueError(
            f"Invalid store {shown!r}: name a database file as 'sqlite:///{path}', or a server as "
            f"'http://localhost:5000'. A store of an older MLflow needs `mlflow db upgrade {shown}`; a store of "
            f"a newer MLflow needs that version. MLflow says: {one_line(str(error), 300)}"
        ) from error


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Configure MLflow, DSPy and alembic for logging in this scope."""
    new = {name: value for name, value in _DEFAULTS.items() if name not in os.environ}
    alembic, tracked = logging.getLogger("alembic"), dspy.settings.track_usage
    level = alembic.level
    os.environ.update(new)
    alembic.setLevel(logging.WARNING)  # it logs fifty lines when a store is created
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)
        alembic.setLevel(level)
        dspy.configure(track_usage=tracked)  # MLflow enables it


@contextlib.contextmanager
def logged_run(name: str, status: Callable[[], str] = lambda: "FINISHED") -> Iterator[None]:
    """Open an MLflow run in this scope: its page shows the traces made in it and their reports.

    Without one, reports are attachments of their traces, which MLflow's UI offers for download. No run is opened
    if the store is a server that does not respond.

    Args:
        name: The name of the run.
        status: Returns its status: `FINISHED`, `FAILED` or `KILLED`. It is `KILLED` after an interrupt, and
            `FAILED` if another error leaves the scope.

    Raises:
        ValueError: If MLflow opens no run because the experiment does not exist or the store cannot be written.
    """
    uri = mlflow.get_tracking_uri()
    if uri.startswith("http") and not answers(uri):
        yield
        return
    with _explained(uri):
        run = mlflow.start_run(run_name=name)
    with run:
        try:
            yield
        except (KeyboardInterrupt, asyncio.CancelledError):
            mlflow.end_run("KILLED")
            raise
        mlflow.end_run(status())


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Replace an error of MLflow in this scope by one that names the settings, and silence MLflow's log of it."""
    log = logging.getLogger("mlflow.store.db.utils")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    except (mlflow.MlflowException, SQLAlchemyError) as error:
        raise ValueError(
            f"MLflow opens no run in {uri.rpartition('@')[2]!r}: set MLFLOW_TRACKING_URI to a store that "
            "can be written; unset MLFLOW_EXPERIMENT_NAME and MLFLOW_EXPERIMENT_ID, or set one to an experiment "
            f"that exists. MLflow says: {one_line(str(error), 300)}"
        ) from error
    finally:
        log.setLevel(level)


def _set_experiment(name: str) -> None:
    """Log to an experiment; if the store is a server that does not respond, as soon as it responds."""
    uri = mlflow.get_tracking_uri()
    if not uri.startswith("http") or answers(uri):
        with _explained(uri):
            mlflow.set_experiment(name)
    elif (queue := installed_queue()) is not None:
        queue.close(then=lambda: mlflow.set_experiment(name))
