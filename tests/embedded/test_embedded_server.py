"""The embedded model behind its OpenAI-compatible server, asked over HTTP."""

import json
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import dspy
import pytest

from rlm_dspy.embedded import engine

pytestmark = pytest.mark.usefixtures("smollm2")
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with engine.serve(slots=1) as url:
        yield url


def test_the_server_answers_dspys_own_openai_client(base_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    lm = dspy.LM(
        "openai/smollm2-135m-instruct",
        api_base=base_url,
        api_key="none",
        max_tokens=24,
        temperature=0,
        cache=False,
    )
    assert "4" in lm("What is 2+2?")[0]
    assert lm.history[-1]["usage"]["prompt_tokens"] > 0


def test_the_server_lists_its_model(base_url: str) -> None:
    with urllib.request.urlopen(f"{base_url}/models") as response:
        models = json.load(response)
    assert [model["id"] for model in models["data"]] == ["smollm2-135m-instruct"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example", "Content-Type": "application/json"}, 403),
        ({"Origin": "https://evil.example", "Content-Type": "application/json"}, 403),
        ({"Content-Type": "text/plain"}, 415),
    ],
)
def test_the_server_refuses_what_a_web_page_can_send(base_url: str, headers: dict[str, str], status: int) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}).encode()
    request = urllib.request.Request(f"{base_url}/chat/completions", body, headers)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    assert caught.value.code == status
    caught.value.close()


def test_the_server_refuses_a_taken_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RuntimeError, match=f"Cannot listen on 127.0.0.1:{port}"), engine.serve(port=port):
            pass


def test_the_server_refuses_a_missing_model(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="cannot be read"), engine.serve(tmp_path / "none.gguf"):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to be asked with")
def test_the_server_stops_cleanly_when_terminated() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "rlm_dspy.embedded", "--port", "0", "--slots", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline()
        killer = threading.Timer(30, process.kill)
        killer.start()
        process.terminate()
        rest, errors = process.communicate()
        killer.cancel()
        killer.join()
    assert address.startswith("http://127.0.0.1:")
    assert (process.returncode, rest, errors) == (0, "", "")
