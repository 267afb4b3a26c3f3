"""`rlm-dspy serve` as a process, and what it refuses."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
import pytest
from typer.testing import CliRunner

import rlm_dspy
from rlm_dspy.cli.app import app
from rlm_dspy.cli.signals import handled
from tests.commands import environment

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import dspy
from rlm_dspy import RLM
from rlm_dspy.testing import ScriptedLM

dspy.configure(lm=ScriptedLM(lambda _: "```python\\nSUBMIT(answer=question[::-1])\\n```"))
program = RLM("question -> answer")
other = RLM("question -> answer")
"""
KEY = "0123456789abcdef"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Write a program with a scripted LM."""
    path = tmp_path / "backwards.py"
    path.write_text(PROGRAM, encoding="utf-8")
    return path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_program_is_served_until_a_signal(program: Path, number: signal.Signals) -> None:
    """Its model is named as its file; the exit code is 0."""
    command = [sys.executable, "-m", "rlm_dspy", "serve", str(program), "--port", "0"]
    told = {**environment(), "RLM_DSPY_SERVE_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with (
        handled({signal.SIGHUP: lambda *_: None}),  # otherwise it inherits from nohup that it is ignored
        subprocess.Popen(command, env=told, stderr=subprocess.PIPE, text=True) as process,
    ):
        assert process.stderr
        line = next(line for line in process.stderr if "http://" in line)
        (url,) = re.findall(r"http://127\.0\.0\.1:\d+/v1", line)
        body = {"model": "backwards", "messages": [{"role": "user", "content": "abc"}]}
        assert httpx.post(f"{url}/chat/completions", json=body, timeout=60).status_code == 401
        headers = {"Authorization": f"Bearer {KEY}"}
        found = httpx.post(f"{url}/chat/completions", json=body, headers=headers, timeout=60)
        assert found.json()["choices"][0]["message"]["content"] == "cba"
        process.send_signal(number)
        assert process.wait(60) == 0
        assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--host", "0.0.0.0"], "Other machines can reach 0.0.0.0: set a key"),
        (["--keys", "missing.txt"], "--keys missing.txt: it cannot be read"),
        (["--keys", "empty.txt"], "--keys empty.txt: it has no key. Write one on each line."),
        (["--keys", "short.txt"], "A key is shorter than 16 characters"),
    ],
)
def test_what_cannot_be_served_is_told_in_a_line(
    program: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], why: str
) -> None:
    """With exit code 2, before anything listens."""
    monkeypatch.chdir(program.parent)
    monkeypatch.setenv("RLM_DSPY_SERVE_KEY", "")
    (program.parent / "empty.txt").write_text("# nothing\n\n", encoding="utf-8")
    (program.parent / "short.txt").write_text("secret\n", encoding="utf-8")
    done = CliRunner().invoke(app, ["serve", f"{program}:other", *arguments])
    assert (done.exit_code, why in done.stderr) == (2, True), done.stderr


def test_a_port_that_is_in_use_is_told_with_the_option_that_names_another(program: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = CliRunner().invoke(app, ["serve", str(program), "--port", str(port)])
    told = f"Error: Cannot listen on 127.0.0.1:{port}: Address already in use. Name another port or host (--port,"
    assert (found.exit_code, " ".join(found.stderr.split())[: len(told)]) == (3, told)


def test_without_its_extra_it_names_it(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starlette and uvicorn come with others, the client of Prometheus does not."""
    for name in [name for name in sys.modules if name.startswith("rlm_dspy.service")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(rlm_dspy, "service", raising=False)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    done = CliRunner().invoke(app, ["serve", str(program)])
    assert done.exit_code == 3
    assert "needs the package prometheus_client: pip install 'dspy-recursive-lm[serve]'" in done.stderr
