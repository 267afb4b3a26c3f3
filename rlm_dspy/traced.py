"""The `--trace` of the commands: what they do is logged to MLflow."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from rlm_dspy.exits import tell

if TYPE_CHECKING:
    from collections.abc import Iterator

_RUN_NAME_CHARS = 80
_STORE = "sqlite:///mlflow.db"


@contextlib.contextmanager
def traced(name: str) -> Iterator[None]:
    """Log DSPy's calls to MLflow: `MLFLOW_TRACKING_URI`, else a file in the working directory.

    Args:
        name: What the run of MLflow is called.
    """
    from rlm_dspy import tracing  # noqa: PLC0415 (takes seconds)

    store = os.environ.get("MLFLOW_TRACKING_URI") or _STORE
    tracing.autolog(store=store, experiment="rlm-dspy")
    try:
        with tracing.logged_run(name[:_RUN_NAME_CHARS]):
            try:
                yield
            finally:
                tracing.flush()
    finally:
        tell(f"Logged to MLflow. Look at it: {store if store.startswith('http') else 'rlm-dspy ui'}")
