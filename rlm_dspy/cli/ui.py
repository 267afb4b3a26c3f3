"""The command `rlm-dspy ui`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Annotated

import typer

from rlm_dspy.cli.errors import FAILED, tell
from rlm_dspy.cli.options import tracking_store


def ui(
    store: Annotated[str | None, typer.Option(help="The MLflow store; default: that of `ask --trace`.")] = None,
    port: Annotated[int, typer.Option(help="The port of the server.", min=1, max=65535)] = 5000,
) -> None:
    """Serve the runs that were logged to MLflow (`ask --trace`) for a browser, until Ctrl-C.

    Exit codes: 0 after Ctrl-C, 3 if the server could not be started.
    """
    served = store or tracking_store()
    if served.startswith("http"):
        tell(f"The store is a server: open {served} in a browser.")
        return
    if _taken(port):
        tell(f"Error: port {port} is in use; choose another with --port.")
        raise typer.Exit(FAILED)
    tell(
        f"Serving {served} at http://127.0.0.1:{port} (the first start takes half a minute). Press Ctrl-C to stop."
    )
    process = subprocess.Popen(server_command(served, port), env=server_environment())  # noqa: S603
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        return
    if code:
        tell(f"Error: the server exited with code {code}.")
        raise typer.Exit(FAILED)


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def server_command(store: str, port: int, host: str = "127.0.0.1") -> list[str]:
    """Return the command that serves a store.

    Args:
        store: `sqlite:///path.db`, or another value of `mlflow server --backend-store-uri`.
        port: The port to listen on.
        host: The address to listen on.
    """
    options = ["--backend-store-uri", store, "--host", host, "--port", str(port), "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "server", *options]


def server_environment() -> dict[str, str]:
    """Return this process's environment, without the jobs of the server, which are not used here."""
    return {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ}
