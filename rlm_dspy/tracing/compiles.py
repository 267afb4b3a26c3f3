"""What a compile is, expects and finds, on the page of the run of MLflow that is open."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import mlflow

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from rlm_dspy.forecast import Forecast
    from rlm_dspy.promotion import Comparison

_PROMPT_FILE = "prompts/{}.json"


def log_compile(
    about: Mapping[str, Any],
    *,
    cast: Forecast | None = None,
    prompts: Mapping[str, Mapping[str, Any]] | None = None,
    compared: Comparison | None = None,
    policy: str | os.PathLike[str] | None = None,
) -> None:
    """Log to the run that is open; without one, nothing.

    Args:
        about: What was compiled, how and on what; logged as parameters.
        cast: What it was told to cost, as metrics `forecast_*` (p50 and p95; USD, seconds).
        prompts: States of predictors by name, before and after; each is a file below `prompts/`.
        compared: Scores of candidate and incumbent, as metrics, an example a step.
        policy: The policy file that was written.
    """
    if mlflow.active_run() is None:
        return
    if about:
        mlflow.log_params(dict(about))
    if cast is not None:
        pairs = {"tokens": cast.tokens, "seconds": cast.seconds, **({"cost": cast.cost} if cast.cost else {})}
        found = {
            f"forecast_{name}_{which}": pair[at] for name, pair in pairs.items() for at, which in _PERCENTILES
        }
        mlflow.log_metrics({"forecast_runs": cast.runs, **found})
    for name, state in (prompts or {}).items():
        mlflow.log_text(json.dumps(state, indent=1, ensure_ascii=False, default=str), _PROMPT_FILE.format(name))
    if compared is not None:
        _log_comparison(compared)
    if policy is not None:
        mlflow.log_artifact(str(policy))


_PERCENTILES = ((0, "p50"), (1, "p95"))


def _log_comparison(compared: Comparison) -> None:
    low, high = compared.interval
    for at, (mine, its) in enumerate(zip(compared.candidate, compared.incumbent, strict=True)):
        mlflow.log_metrics({"score_after_each": mine, "score_before_each": its}, step=at)
    mlflow.log_metrics(
        {
            "score_after": sum(compared.candidate) / len(compared.candidate),
            "score_before": sum(compared.incumbent) / len(compared.incumbent),
            "difference": compared.difference,
            "difference_low": low,
            "difference_high": high,
        }
    )
    mlflow.set_tags({"decision": compared.reason, "not_worse": str(compared.not_worse).lower()})
