"""Serves programs for tests: a real server in a thread, and the official client."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import dspy
import openai

from rlm_dspy.service import create_app
from rlm_dspy.service.server import server_of
from rlm_dspy.testing import ScriptedLM

if TYPE_CHECKING:
    from collections.abc import Iterator

_clients: list[openai.OpenAI] = []
KEY = "a key of the tests, long enough"


@contextlib.contextmanager
def served(program: Any, lm: Any = None, **options: Any) -> Iterator[str]:
    """Serve a program with an LM on a free port; yield the URL without `/v1`."""
    with dspy.context(lm=lm or ScriptedLM()):  # in force for its runs, as the one of `rlm-dspy serve --model`
        app = create_app(program, **options)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = server_of(app, options.get("max_runs", 8), 1)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        wait_for(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        while _clients:
            _clients.pop().close()
        server.should_exit = True
        thread.join(120)
        assert not thread.is_alive()


def client_of(url: str, **options: Any) -> openai.OpenAI:
    """Return the official client of a served program, which is closed with it."""
    _clients.append(openai.OpenAI(base_url=f"{url}/v1", **{"api_key": KEY, "max_retries": 0, **options}))
    return _clients[-1]


def code(text: str) -> str:
    """Return a reply of the model."""
    return f"I look.\n```python\n{text}\n```"


def wait_for(holds: Any, seconds: float = 120) -> None:
    """Wait until something holds."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)
