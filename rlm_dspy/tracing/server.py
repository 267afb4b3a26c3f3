"""MLflow's server over a store on this machine."""

from __future__ import annotations

import os
import sys

OFFLINE = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
"""Without network the server would wait for it, some of this for ever; and nothing here gives it jobs."""


def server_command(store: str, port: int, host: str = "127.0.0.1") -> list[str]:
    """Return the command that serves a store.

    Args:
        store: `sqlite:///path.db`, or what else `mlflow server --backend-store-uri` takes.
        port: Where it listens.
        host: On which address.
    """
    options = ["--backend-store-uri", store, "--host", host, "--port", str(port), "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "server", *options]


def server_environment() -> dict[str, str]:
    """Return this process's environment, with the look-ups of `OFFLINE` off unless it says otherwise."""
    return {**OFFLINE, **os.environ}
