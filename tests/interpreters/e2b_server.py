"""E2B on 127.0.0.1, for its real client: sandboxes whose processes run on this machine.

The processes are served by the class that E2B has generated from its protocol.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn

pytest.importorskip("e2b")

from e2b.envd.process import process_pb as pb
from e2b.envd.process.process_connect import Process, ProcessASGIApplication
from protobuf import Oneof

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

_END_SECONDS = 5
_REFUSED = (401, {"code": 401, "message": "Invalid API key"})


class Server(Process):
    """The service.

    Attributes:
        living: What each sandbox that is there was made with.
        key: The key that a client must have.
    """

    def __init__(self) -> None:
        self.living: dict[str, dict[str, Any]] = {}
        self.key = "e2b_" + "0" * 40
        self.children: dict[int, asyncio.subprocess.Process] = {}
        self._of_processes = ProcessASGIApplication(self)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request of the API, or one about processes."""
        if not scope.get("path", "").removeprefix("/v2").startswith("/sandboxes"):
            await self._of_processes(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        keys = [value.decode() for name, value in scope["headers"] if name.lower() == b"x-api-key"]
        status, told = self._answer(scope["method"], scope["path"], body) if keys == [self.key] else _REFUSED
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(told).encode() if status != 204 else b""})

    def kill(self) -> None:
        """Kill the commands of all sandboxes."""
        for child in self.children.values():
            if child.returncode is None:
                os.killpg(child.pid, signal.SIGKILL)

    def _answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if method == "DELETE":
            del self.living[path.rsplit("/", 1)[1]]
            for child in self.children.values():
                if child.returncode is None:
                    os.killpg(child.pid, signal.SIGTERM)
            return 204, {}
        name = f"sandbox{len(self.living)}"
        self.living[name] = json.loads(body)
        return 201, {"sandboxID": name, "clientID": "c", "templateID": "base", "envdVersion": "0.5.2"}

    async def start(self, request: Any, ctx: Any) -> AsyncIterator[Any]:
        """Run a process and yield what comes from it."""
        words = (request.process.cmd, *request.process.args)
        child = await asyncio.create_subprocess_exec(
            *words, stdin=-1, stdout=-1, stderr=-1, start_new_session=True
        )
        self.children[child.pid] = child
        assert child.stdout is not None
        assert child.stderr is not None
        yield _event("start", pb.ProcessEvent.StartEvent(pid=child.pid))
        while piece := await child.stdout.read(32_768):
            yield _event("data", pb.ProcessEvent.DataEvent(output=Oneof("stdout", piece)))
        while piece := await child.stderr.read(32_768):
            yield _event("data", pb.ProcessEvent.DataEvent(output=Oneof("stderr", piece)))
        code = await child.wait()
        yield _event("end", pb.ProcessEvent.EndEvent(exit_code=code, exited=True, status="exited"))

    async def send_input(self, request: Any, ctx: Any) -> Any:
        """Write to the stdin of a process."""
        stdin = self.children[request.process.selector.value].stdin
        assert stdin is not None
        stdin.write(request.input.input.value)
        await stdin.drain()
        return pb.SendInputResponse()


def _event(field: str, value: Any) -> Any:
    return pb.StartResponse(event=pb.ProcessEvent(event=Oneof(field, value)))


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serve on a free port, and let the client know."""
    server = Server()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else each answer waits for 40 ms
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        config = uvicorn.Config(server, log_level="error", lifespan="off")
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, args=([listening],), daemon=True)
        thread.start()
        while not running.started:
            time.sleep(0.01)
        for name in ("E2B_API_URL", "E2B_SANDBOX_URL"):
            monkeypatch.setenv(name, address)
        monkeypatch.setenv("E2B_API_KEY", server.key)
        yield server
        running.should_exit = True
        thread.join(_END_SECONDS)
