"""`rlm-dspy models`, and what `ask` does where no model was downloaded."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from rlm_dspy.cli.app import app
from rlm_dspy.embedded.model_catalog import DEFAULT, megabytes
from tests.commands import ROOT, environment

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result

UNREACHABLE = {
    "HF_HUB_OFFLINE": "1",
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_INDEX_URL": "http://127.0.0.1:9/",
    "PIP_FIND_LINKS": "",
    "PIP_RETRIES": "0",
    "UV_OFFLINE": "1",
}
"""The settings of a user without a network."""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["models", *arguments])


@pytest.mark.usefixtures("smollm2")
def test_the_list_says_what_each_model_is_and_which_is_the_default() -> None:
    lines = run().stdout.splitlines()
    assert lines[0].split() == ["NAME", "SIZE", "LICENSE", "READS", "WRITES", "HERE", "GOOD", "FOR"]
    assert "98 MB" in lines[1]
    assert "  default  " in lines[1]
    assert lines[3].startswith("qwen2.5-coder-1.5b  1,117 MB  Apache-2.0")
    assert "default" not in lines[3]
    assert lines[-1] == f"Folder: {os.environ['RLM_DSPY_MODELS']}"


def test_the_path_of_a_downloaded_model_is_printed(smollm2: Path) -> None:
    assert run("path", "smollm2-135m").stdout == f"{smollm2}\n"


@pytest.mark.usefixtures("smollm2")
def test_what_was_not_downloaded_has_no_path() -> None:
    result = run("path", "qwen2.5-coder-0.5b")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "rlm-dspy models pull qwen2.5-coder-0.5b" in result.stderr


def test_a_model_can_be_removed(smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLM_DSPY_MODELS", str(tmp_path))
    (tmp_path / smollm2.name).symlink_to(smollm2)
    assert run("remove", "smollm2-135m").stdout == "smollm2-135m was removed.\n"
    assert run("remove", "smollm2-135m").stdout == "smollm2-135m was not on this machine.\n"


@pytest.mark.parametrize("command", ["pull", "path", "remove"])
def test_an_unknown_name_is_bad_usage(command: str) -> None:
    result = run(command, "gpt")
    assert (result.exit_code, "choose one of: smollm2-135m" in result.stderr) == (2, True)


def test_ask_names_the_command_where_nobody_can_be_asked(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rlm_dspy", "ask", "Who?", "README.md"],
        env={**environment(), "RLM_DSPY_MODELS": str(tmp_path)},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert f"rlm-dspy models pull {DEFAULT.name}" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
@pytest.mark.parametrize(
    ("answer", "code", "told"),
    [("n", 2, f"rlm-dspy models pull {DEFAULT.name}"), ("y", 3, f"{DEFAULT.name} could not be downloaded")],
)
def test_ask_asks_at_a_terminal_before_it_downloads(tmp_path: Path, answer: str, code: int, told: str) -> None:
    import pty  # noqa: PLC0415 (not on Windows)

    leader, follower = pty.openpty()
    shown = b""
    with subprocess.Popen(
        [sys.executable, "-m", "rlm_dspy", "ask", "Who?", "README.md"],
        env={**environment(), **UNREACHABLE, "RLM_DSPY_MODELS": str(tmp_path)},
        cwd=ROOT,
        stdin=follower,
        stderr=follower,
        stdout=subprocess.PIPE,
    ) as process:
        os.close(follower)
        with contextlib.suppress(OSError):  # Linux says so that the other end is closed
            while some := os.read(leader, 1 << 16):
                shown += some
                if some.rstrip().endswith(b"[y/N]:"):
                    os.write(leader, f"{answer}\n".encode())
    os.close(leader)
    said = shown.decode().replace("\r\n", "\n")
    assert said.startswith(
        f"{DEFAULT.name} is not on this machine. Download it ({megabytes(DEFAULT.size)})? [y/N]:"
    )
    assert told in said
    assert process.returncode == code
    assert list(tmp_path.glob("*.gguf")) == []


@pytest.mark.by_hand
def test_pull_downloads_without_asking(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "rlm_dspy",
            "ask",
            "?",
            "README.md",
            "--model",
            "smollm2-135m",
            "--pull",
            "--max-iters",
            "1",
        ],
        env={**environment(), "RLM_DSPY_MODELS": str(tmp_path)},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"smollm2-135m is in {tmp_path}" in done.stderr
    assert len(list(tmp_path.glob("*.gguf"))) == 1
