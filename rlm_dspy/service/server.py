"""Runs the service behind uvicorn."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from rlm_dspy.errors import UsageError
from rlm_dspy.service.app import create_app
from rlm_dspy.service.gate import is_local

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection

    import dspy
    from starlette.types import ASGIApp

_IDLE_CONNECTIONS = 100
"""Connections without a run."""
_HEAD_SECONDS = 20.0


def serve(
    program: dspy.Module,
    *,
    port: int,
    name: str = "program",
    host: str = "127.0.0.1",
    keys: Collection[str] = (),
    other_hosts: Collection[str] = (),
    max_runs: int = 8,
    grace_seconds: int = 30,
    announce: Callable[[str], object] = lambda _: None,
) -> None:
    """Serve a program over HTTP until SIGINT or SIGTERM; see `create_app`.

    Args:
        program: An `RLM`, or a module with `aforward` and an attribute `signature`.
        port: The port; 0 for a free one.
        name: The name of the model in requests.
        host: The address to listen on.
        keys: The keys of clients.
        other_hosts: Further names of the server, by which requests may reach it.
        max_runs: How many runs may go on at once.
        grace_seconds: How long runs may go on after the signal before they are cancelled.
        announce: Receives the URL when the server listens.

    Raises:
        UsageError: If the program cannot be served, or others can reach the address and there is no key.
        OSError: If it cannot listen on the address.
        KeyboardInterrupt: After SIGINT, when the server has stopped.
    """
    if not keys and not is_local(host):
        raise UsageError(f"Other machines can reach {host}: set a key for the clients, or listen on 127.0.0.1.")
    app = create_app(program, name=name, keys=keys, host=host, other_hosts=other_hosts, max_runs=max_runs)
    shown = f"[{host}]" if ":" in host else host
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        why = str(error.strerror).partition(" (")[0]  # without the address
        fix = "Name another port or host (--port, --host); port 0 takes a free one."
        raise OSError(f"Cannot listen on {shown}:{port}: {why}. {fix}") from error
    with listener:
        announce(f"http://{shown}:{listener.getsockname()[1]}/v1")
        server_of(app, max_runs, grace_seconds).run(sockets=[listener])


def server_of(app: ASGIApp, max_runs: int, grace_seconds: int) -> uvicorn.Server:
    """Return the server of an application."""
    config = uvicorn.Config(
        app,
        http=_Connection,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=max_runs + _IDLE_CONNECTIONS,
        timeout_graceful_shutdown=grace_seconds,
    )
    return uvicorn.Server(config)


class _Connection(H11Protocol):
    """A connection that is closed if the head of a request does not come in time."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect the first request."""
        super().connection_made(transport)
        self._expect_request()

    def on_response_complete(self) -> None:
        """Expect the next one."""
        super().on_response_complete()
        self._expect_request()

    def _expect_request(self) -> None:
        last = self.cycle

        def close() -> None:
            if self.cycle is last:
                self.transport.close()

        self.loop.call_later(_HEAD_SECONDS, close)
