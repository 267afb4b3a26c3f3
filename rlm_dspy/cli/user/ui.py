"""The command `rlm-dspy ui`."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Annotated

import typer

from rlm_dspy.cli.errors import FAILED, errors_as_lines, tell
from rlm_dspy.cli.options import STORE_FILE, tracking_store
from rlm_dspy.cli.user.last_store import last_store
from rlm_dspy.errors import UsageError


def ui(
    store: Annotated[
        str | None,
        typer.Option(
            help="The MLflow store, e.g. sqlite:///runs.db; default: MLFLOW_TRACKING_URI, else mlflow.db in this "
            "folder, else the store of the last `ask --trace`."
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="The port of the server.", min=1, max=65535)] = 5000,
) -> None:
    """Serve the runs that were logged to MLflow (`ask --trace`) for a browser, until Ctrl-C.

    Exit codes: 0 after Ctrl-C, 2 if there is no store that can be opened, 3 if the server could not be started.
    """
    with errors_as_lines(debug=False):
        served = store or found_store()
    if served.startswith("http"):
        tell(f"The store is a server: open {served} in a browser.")
        return
    with errors_as_lines(debug=False):
        check_served(served)
    check_port(port)
    address = f"http://127.0.0.1:{port}"
    tell(f"Serving {served} at {address} (the first start takes half a minute). Press Ctrl-C to stop.")
    process = subprocess.Popen(server_command(served, port), env=server_environment())  # noqa: S603
    threading.Thread(target=_tell_of_runs, args=(address, process), daemon=True).start()
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        return
    if code:
        tell(f"Error: the server exited with code {code}.")
        raise typer.Exit(FAILED)


def found_store() -> str:
    """Return the store to serve: from the environment, in this folder, or of the last traced run.

    Raises:
        UsageError: If there is none; the message lists the places that were searched.
    """
    if os.environ.get("MLFLOW_TRACKING_URI") or Path(STORE_FILE).is_file():
        return tracking_store()
    if last := last_store():
        return f"sqlite:///{last}"
    raise UsageError(
        f"No runs found: MLFLOW_TRACKING_URI is not set, {Path(STORE_FILE).absolute()} does not exist, and no "
        "store of an earlier `ask --trace` is left. Log a run with `rlm-dspy ask ... --trace`, or name the store: "
        "rlm-dspy ui --store sqlite:///PATH/mlflow.db"
    )


def check_served(store: str) -> None:
    """Check that a store can be opened: the server ends with a long traceback, or creates an empty database.

    Raises:
        UsageError: If not; the message names the fix.
    """
    from rlm_dspy.tracing.autolog import check_store

    path = store.removeprefix("sqlite:///").partition("?")[0]
    if store.startswith("sqlite:///") and not Path(path).is_file():
        raise UsageError(
            f"Invalid store {store!r}: {path} does not exist. Correct the path, or log a run with "
            "`rlm-dspy ask ... --trace`."
        )
    try:
        check_store(store)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _tell_of_runs(address: str, process: subprocess.Popen[bytes]) -> None:
    """Print the address of the runs as soon as the server answers; its front page does not link to them."""
    import httpx

    while process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            httpx.get(f"{address}/health")
            tell(f"The runs: {runs_page(address)}")
            break
        time.sleep(0.5)


def runs_page(address: str) -> str:
    """Return the address of the traces of the experiment with the newest trace.

    Args:
        address: The address of a running MLflow server.
    """
    import httpx

    with httpx.Client(base_url=f"{address}/api") as server:
        found = server.post("2.0/mlflow/experiments/search", json={"max_results": 1000}).json()
        places = [
            {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment["experiment_id"]}}
            for experiment in found.get("experiments", [])
        ]
        newest = {"locations": places, "max_results": 1, "order_by": ["timestamp_ms DESC"]}
        traces = server.post("3.0/mlflow/traces/search", json=newest).json().get("traces", [])
    page = f"{address}/#/experiments"
    if not traces:
        return page
    return f"{page}/{traces[0]['trace_location']['mlflow_experiment']['experiment_id']}/traces"


def check_port(port: int) -> None:
    """End the command if another program listens on a port of this machine."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            tell(f"Error: port {port} is in use; choose another with --port.")
            raise typer.Exit(FAILED)


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
