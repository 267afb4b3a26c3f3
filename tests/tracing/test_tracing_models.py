"""Programs with an RLM as models of MLflow: logged without keys, loaded in a fresh process, served over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM, tracing
from rlm_dspy.interpreters import PythonInterpreter
from tests.playing import block

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.tracing.stores import Store

KEY = "sk-planted-9f2ke83hd"
CODE = block("words = len(text.split())\nSUBMIT(count=words, about=llm_query('topic?'))")


class ScriptedModel(BaseHTTPRequestHandler):
    """Plays a model over HTTP, as OpenAI's would answer; it wants the key."""

    def do_POST(self) -> None:
        """Answer a chat completion."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = body["messages"][-1]["content"]
        asked = asked if isinstance(asked, str) else asked[0]["text"]
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            self._send(401, {"error": {"message": "no key"}})
            return
        message = {"role": "assistant", "content": "weather" if asked == "topic?" else CODE}
        choices = [{"index": 0, "finish_reason": "stop", "message": message}]
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        head = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"]}
        self._send(200, {**head, "choices": choices, "usage": usage})

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def lm() -> Iterator[dspy.LM]:
    """Give an LM that the scripted model answers."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), ScriptedModel)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    base = f"http://127.0.0.1:{server.server_port}/v1"
    yield dspy.LM("openai/scripted", api_base=base, api_key=KEY, cache=False, max_tokens=100)
    server.shutdown()
    thread.join()
    server.server_close()


def optimized(sub_lm: dspy.LM | None = None) -> RLM:
    """Return a module as an optimizer leaves it: with instructions and a demo of its own."""
    signature = "text -> count: int, about: str"
    module = RLM(signature, sub_lm=sub_lm, policy=None, interpreter_factory=PythonInterpreter)
    module.act.signature = module.act.signature.with_instructions("Write Python. Be quick.")
    steps: dict[str, list[Any]] = {"steps": []}
    module.act.demos = [dspy.Example(environment="Task: count", trajectory=steps, reasoning="r", code="SUBMIT(1)")]
    return module


def elsewhere(store: Store, **variables: str) -> dict[str, str]:
    """Return the environment of a fresh process that may load models of a store."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # it runs uvicorn by name
        "MLFLOW_TRACKING_URI": store.uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "true",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **variables,
    }


LOAD = """
import json, sys, mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
print(json.dumps(model.predict({"text": "rain and wind"}), default=str))
print(json.dumps([p.signature.instructions for p in mlflow.dspy.load_model(sys.argv[1]).predictors()]))
"""


@pytest.mark.long
def test_a_logged_program_answers_in_a_fresh_process_and_holds_no_key(store: Store, lm: dspy.LM) -> None:
    """The key comes from the environment there. What an optimizer found is in the model."""
    with dspy.context(lm=lm):
        info = tracing.log_model(optimized(sub_lm=lm))
    assert KEY.encode() not in store.content()
    command = [sys.executable, "-c", LOAD, info.model_uri]
    environment = elsewhere(store, OPENAI_API_KEY=KEY)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answer, instructions = map(json.loads, done.stdout.splitlines()[-2:])
    assert (answer["count"], answer["about"], answer["stop"]) == (3, "weather", "submitted")
    assert "Write Python. Be quick." in instructions
    assert lm.kwargs["api_key"] == KEY  # the caller's own LM is as it was


@pytest.mark.long
def test_a_logged_program_is_served_over_http(store: Store, lm: dspy.LM) -> None:
    """By `mlflow models serve`, with code in the confined interpreter."""
    with dspy.context(lm=lm):
        info = tracing.log_model(optimized())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--model-uri", info.model_uri, "--port", str(port), "--env-manager", "local", "--workers", "1"]
    command = [sys.executable, "-m", "mlflow", "models", "serve", *options]
    server = subprocess.Popen(command, env=elsewhere(store, OPENAI_API_KEY=KEY), start_new_session=True)
    try:
        answered(f"http://127.0.0.1:{port}/ping", None, server)
        given = {"dataframe_split": {"columns": ["text"], "data": [["rain and wind"]]}}
        answer = answered(f"http://127.0.0.1:{port}/invocations", given, server)["predictions"]
        assert (answer["count"], answer["about"], answer["stop"]) == (3, "weather", "submitted")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def answered(address: str, given: Any, server: subprocess.Popen[bytes]) -> Any:
    """Return what a server answers, once it is there."""
    data = None if given is None else json.dumps(given).encode()
    request = urllib.request.Request(address, data=data, headers={"Content-Type": "application/json"})
    until = time.monotonic() + 240
    while True:
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                content = response.read()
                return json.loads(content) if content.strip() else None
        except urllib.error.HTTPError as error:
            pytest.fail(f"{error}: {error.read().decode()[:2000]}")
        except OSError:
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < until, f"{address} does not answer"
            time.sleep(1)
