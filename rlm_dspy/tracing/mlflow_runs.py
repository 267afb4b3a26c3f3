"""Shortens and redacts what MLflow logs for evaluations and optimizers besides traces."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import tempfile
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import dspy
import mlflow
from mlflow.entities import AssessmentError

from rlm_dspy.redaction import without_secrets
from rlm_dspy.tracing._mlflow_compat import replaced
from rlm_dspy.tracing.export_queue import keep_score

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from rlm_dspy.optimize.forecast import Forecast
    from rlm_dspy.optimize.promotion import Comparison
    from rlm_dspy.tracing.payloads import Payloads, Secrets

_CELL_CHARS = 500
_FEEDBACK_CHARS = 4_000
_logger = logging.getLogger("dspy.rlm_dspy.tracing")


@contextlib.contextmanager
def logging_shortly(payloads: Payloads, secrets: Secrets) -> Iterator[None]:
    """Shorten and redact the datasets, states and LM settings that MLflow logs in this scope, and keep all scores.

    MLflow itself writes whole contexts of a dataset and the headers of an LM, and loses the scores of traces that
    are not stored yet. It looks these functions up by name at each call, and has no other hook.
    """

    def log_dataset(dataset: Iterable[dspy.Example], file_name: str) -> None:
        mlflow.log_table(_columns([payloads.value(example, _CELL_CHARS) for example in dataset]), file_name)

    def save_state(program: dspy.Module, file_name: str = "model.json") -> None:
        for _, predictor in program.named_predictors():
            secrets.learn_lm(predictor.lm)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / file_name
            program.save(path)
            mlflow.log_text(payloads.hidden(path.read_text(encoding="utf-8")), file_name)

    with (
        replaced("sanitize_params", without_secrets),
        replaced("log_dspy_dataset", _harmless(log_dataset)),
        replaced("save_dspy_module_state", _harmless(save_state)),
        replaced("_patch_metric", functools.partial(with_score, payloads)),
    ):
        yield


def result_table(payloads: Payloads, results: list[tuple[Any, Any, Any]]) -> dict[str, list[Any]]:
    """Return the columns of an evaluation: the score, and the inputs and outputs in short form."""
    return _columns([_row(payloads, *result) for result in results])


def with_score(payloads: Payloads, metric: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a metric of `dspy.Evaluate`, to log its score or its error to the trace of the prediction."""
    name = getattr(metric, "__name__", type(metric).__name__)

    @functools.wraps(metric, updated=())
    def scored(*args: Any, **kwargs: Any) -> Any:
        trace_id = mlflow.get_last_active_trace_id(thread_local=True)  # a metric that calls an LM makes later ones
        if trace_id is None:
            return metric(*args, **kwargs)
        log = functools.partial(mlflow.log_feedback, trace_id=trace_id, name=name)
        try:
            score = metric(*args, **kwargs)
        except Exception as error:
            failure = AssessmentError(type(error).__name__, payloads.error(str(error), _FEEDBACK_CHARS))
            keep_score(functools.partial(log, error=failure))
            raise
        value, feedback = score, None
        if isinstance(score, dspy.Prediction):
            value, feedback = score.get("score"), score.get("feedback")
        rationale = None if feedback is None else payloads.text(str(feedback), _FEEDBACK_CHARS)
        keep_score(functools.partial(log, value=value, rationale=rationale))
        return score

    scored.__name__ = name  # DSPy shows it
    return scored


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Convert rows to columns; None for a missing cell."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}


def _row(
    payloads: Payloads, example: dspy.Example, prediction: dspy.Prediction, score: float | dspy.Prediction
) -> dict[str, Any]:
    row = {"score": float(score) if isinstance(score, dspy.Prediction) else score}
    row |= {f"example_{name}": payloads.value(value, _CELL_CHARS) for name, value in example.items()}
    given = dict(prediction.items()) if hasattr(prediction, "items") else {"answer": prediction}
    if isinstance(given.get("trajectory"), list):
        given["turns"] = len(given.pop("trajectory"))
    return row | {f"pred_{name}": payloads.value(value, _CELL_CHARS) for name, value in given.items()}


def _harmless(log: Callable[..., None]) -> Any:
    """Wrap a function so that it never raises, like MLflow's own."""

    def attempt(*args: Any, **kwargs: Any) -> None:
        try:
            log(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 (a logging error must not end an evaluation)
            _logger.warning("Not logged to MLflow: %s", error)

    return attempt


def log_compile(
    about: Mapping[str, Any],
    *,
    cast: Forecast | None = None,
    prompts: Mapping[str, Mapping[str, Any]] | None = None,
    compared: Comparison | None = None,
    policy: str | os.PathLike[str] | None = None,
) -> None:
    """Log to the active MLflow run; do nothing without one.

    Args:
        about: The program, optimizer and data; logged as parameters.
        cast: The forecast, as metrics `forecast_*` (p50 and p95; USD, seconds).
        prompts: States of predictors by name, before and after; each a file in `prompts/`.
        compared: Scores of candidate and incumbent, as metrics with one step per example.
        policy: The policy file that was written.
    """
    if mlflow.active_run() is None:
        return
    if about:
        mlflow.log_params(dict(about))
    if cast is not None:
        mlflow.log_metric("forecast_runs", cast.runs)
        for name, pair in {"tokens": cast.tokens, "seconds": cast.seconds, "cost": cast.cost or ()}.items():
            mlflow.log_metrics({f"forecast_{name}_p{p}": value for p, value in zip((50, 95), pair, strict=False)})
    for name, state in (prompts or {}).items():
        mlflow.log_text(json.dumps(state, indent=1, ensure_ascii=False, default=str), f"prompts/{name}.json")
    if compared is not None:
        _log_comparison(compared)
    if policy is not None:
        mlflow.log_artifact(str(policy))


def _log_comparison(compared: Comparison) -> None:
    for at, (mine, its) in enumerate(zip(compared.candidate, compared.incumbent, strict=True)):
        mlflow.log_metrics({"score_after_each": mine, "score_before_each": its}, step=at)
    low, high = compared.interval
    found = {"difference": compared.difference, "difference_low": low, "difference_high": high}
    found |= {"score_after": fmean(compared.candidate), "score_before": fmean(compared.incumbent)}
    mlflow.log_metrics(found)
    mlflow.set_tags({"decision": compared.reason, "not_worse": str(compared.not_worse).lower()})
