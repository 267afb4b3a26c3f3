"""The command `rlm-dspy ui`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Annotated

import typer

from rlm_dspy.cli.errors import FAILED, tell

_STORE = "sqlite:///mlflow.db"


def ui(
    store: Annotated[
        str | None,
        typer.Option(help=f"The store to look at; by default MLFLOW_TRACKING_URI, else {_STORE}."),
    ] = None,
    port: Annotated[int, typer.Option(help="Where the page is served.", min=1, max=65535)] = 5000,
) -> None:
    """Look at runs that were logged to MLflow (`ask --trace`), in a browser. Ends on Ctrl-C.

    Exit codes: 0 when it was ended, 3 if the server could not be started.
    """
    served = store or os.environ.get("MLFLOW_TRACKING_URI") or _STORE
    if served.startswith("http"):
        tell(f"The store is a server already: open {served} in a browser.")
        return
    if _taken(port):
        tell(f"Error: port {port} is taken; choose another with --port.")
        raise typer.Exit(FAILED)
    tell(f"Serving {served} at http://127.0.0.1:{port} (half a minute, the first time). Ctrl-C ends it.")
    process = subprocess.Popen(server_command(served, port), env=server_environment())  # noqa: S603
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        return
    if code:
        tell(f"Error: the server ended with exit code {code}.")
        raise typer.Exit(FAILED)


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


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
