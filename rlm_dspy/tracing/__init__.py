"""Traces runs to MLflow: spans for the run, its turns, code and sub-calls, with usage and stop reason.

No other package of this project imports MLflow. litellm and MLflow look things up on the network when they are
imported, and wait if there is none. This package disables these look-ups, unless the environment sets them.
"""

import os

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from rlm_dspy.tracing import scorers
from rlm_dspy.tracing.autolog import autolog, logged_run
from rlm_dspy.tracing.export_queue import flush, hurry
from rlm_dspy.tracing.log_model import log_model
from rlm_dspy.tracing.mlflow_runs import log_compile
from rlm_dspy.tracing.prompt_registry import fetch_policy, register_policy
from rlm_dspy.tracing.span_spec import tags

__all__ = [
    "autolog",
    "fetch_policy",
    "flush",
    "hurry",
    "log_compile",
    "log_model",
    "logged_run",
    "register_policy",
    "scorers",
    "tags",
]
