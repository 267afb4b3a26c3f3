"""The tools of MCP servers, which `rlm_dspy.mcp.tools` starts and stops, in runs."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM
from rlm_dspy.errors import InvalidInputs, MCPServerFailed
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.mcp import tools
from rlm_dspy.mcp.servers import read_servers
from rlm_dspy.testing import ScriptedLM
from tests.playing import block, told

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = 60
MARK = f"3599.{os.getpid()}"
"""In the command of every process of a hostile server."""
MOST_BYTES = 200_000_000
PAGES = {"command": sys.executable, "args": ["-m", "tests.mcp_server"]}


def hostile(what: str) -> dict[str, Any]:
    """Return a server that does this when a tool is called."""
    return {"command": sys.executable, "args": [str(Path(__file__).with_name("hostile_server.py")), what, MARK]}


@pytest.fixture(scope="module")
def pages() -> Iterator[list[dspy.Tool]]:
    """Connect the server for all tests that do not end it."""
    with tools({"pages": PAGES}, seconds=SECONDS) as found:
        yield found


def scripted(code: str) -> Any:
    """Return the settings under which every turn runs this code."""
    return dspy.context(lm=ScriptedLM(lambda _: block(code)))


def left_behind() -> list[str]:
    """Return the commands of processes of hostile servers that run."""
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            commands.append(path.read_text())
    return [command for command in commands if MARK in command]


def most_memory() -> int:
    """Return the most bytes of memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("factory", [LocalPythonInterpreter, PythonInterpreter])
async def test_blocking_and_awaited_runs_call_the_same_tools(pages: list[dspy.Tool], factory: Any) -> None:
    """A blocking run inside a running event loop, too: the connection has a loop of its own."""
    rlm = RLM("question -> answer", tools=pages, interpreter_factory=factory)
    with scripted("SUBMIT(answer=fetch(1) + ', ' + fetch(page=2, chapter='two'))"):
        answers = [rlm(question="?").answer, (await rlm.acall(question="?")).answer]
    assert answers == ["page 1 of chapter one, page 2 of chapter two"] * 2


def test_a_failed_call_is_an_error_that_code_can_catch(pages: list[dspy.Tool]) -> None:
    """The run goes on."""
    rlm = RLM("question -> answer", tools=pages, interpreter_factory=LocalPythonInterpreter)
    code = "try:\n    fail(reason='?')\nexcept Exception as error:\n    SUBMIT(answer=str(error) + fetch(1))"
    with scripted(code):
        answer = rlm(question="?").answer
    assert "fail" in answer
    assert answer.endswith("page 1 of chapter one")


def answer_of(what: str, seconds: float = SECONDS) -> str:
    """Return what code gets of a hostile server, and what it gets of it next."""
    code = (
        "answers = []\nfor n in (1, 2):\n    try:\n        answers.append(str(get_page(n=n)))\n"
        "    except Exception as error:\n        answers.append(type(error).__name__ + ': ' + str(error))\n"
        "SUBMIT(answer='; '.join(answers))"
    )
    with tools({"h": hostile(what)}, seconds=seconds) as found, scripted(code):
        rlm = RLM("question -> answer", tools=found, interpreter_factory=LocalPythonInterpreter)
        answer = str(rlm(question="?").answer)
    deadline = time.monotonic() + SECONDS
    while left_behind() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left_behind() == []
    return answer


@pytest.mark.parametrize("what", ["dies", "endless"])
def test_a_server_that_dies_or_floods_is_an_error_and_is_gone_with_its_processes(what: str) -> None:
    """No line is kept whole in memory; the process that it left behind held its pipes open."""
    before = most_memory()
    first, second = answer_of(what).split("; ")
    assert "MCP server 'h'" in first
    assert "MCP server 'h'" in second
    assert most_memory() - before < MOST_BYTES


def test_a_server_that_hangs_costs_the_time_of_a_call() -> None:
    """The error says so."""
    assert answer_of("hangs", seconds=1).count("timed out") == 2


def test_binary_content_is_a_note_and_broken_bytes_end_nothing() -> None:
    """The text beside it arrives."""
    assert answer_of("binary").count("[image, image/png, not shown]") == 2
    assert answer_of("garbage", seconds=1).count("timed out") == 2


@pytest.mark.long
def test_a_flood_of_notifications_fills_no_memory() -> None:
    """200 MB of them come before each answer."""
    before = most_memory()
    assert answer_of("notifications", seconds=120).count("after the flood") == 2
    assert most_memory() - before < MOST_BYTES


def test_names_are_names_of_python_and_large_or_dangerous_schemas_stay_out() -> None:
    """Descriptions are shortened in the prompt as those of any tool."""
    with tools({"my server": hostile("hangs")}, seconds=SECONDS) as found:
        names = [tool.name for tool in found]
        patterns = [tool.args for tool in found if tool.name == "slow_pattern"]
        lm = ScriptedLM(lambda _: block("SUBMIT(answer='?')"))
        rlm = RLM("question -> answer", tools=found, interpreter_factory=LocalPythonInterpreter)
        with dspy.context(lm=lm):
            rlm(question="?")
    assert names == ["my_server_import", "get_page", "my_server_SUBMIT", "slow_pattern"]
    assert patterns == [{"text": {"type": "string"}}]
    assert all(len(line) < 500 for line in told(lm.script.calls[0]).splitlines() if line.startswith("- my_server"))


def test_tools_of_a_closed_connection_name_the_fix() -> None:
    """They were used outside of the scope."""
    with tools({"h": hostile("hangs")}, seconds=SECONDS) as found:
        pass
    rlm = RLM("question -> answer", tools=found, interpreter_factory=LocalPythonInterpreter)
    with scripted("try:\n    get_page(n=1)\nexcept Exception as error:\n    SUBMIT(answer=str(error))"):
        assert "is closed: run the RLM inside `with rlm_dspy.mcp.tools(...)" in rlm(question="?").answer


@pytest.mark.parametrize(
    ("server", "said"),
    [
        ({"command": "no-such-program"}, "could not be started: no-such-program: No such file"),
        ({"command": sys.executable, "args": ["-c", "import nosuch"]}, "No module named 'nosuch'"),
        ({"url": "http://127.0.0.1:9/mcp"}, "could not be reached"),
    ],
)
def test_a_server_that_cannot_be_started_says_why(server: dict[str, Any], said: str) -> None:
    """Before any model call; its standard error is what it has to say."""
    with pytest.raises(MCPServerFailed, match=f"The MCP server 'x' .*{said}"), tools({"x": server}, seconds=5):
        pass


def test_a_server_gets_no_keys_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """But those that its description names."""
    monkeypatch.setenv("PROVIDER_API_KEY", "sk-planted")
    monkeypatch.setenv("PAGES_KEY", "sk-of-pages")
    code = "import os, sys; sys.exit(' '.join(sorted({**os.environ})) + os.environ['KEY'])"
    server = {"command": sys.executable, "args": ["-c", code], "env": {"KEY": "${PAGES_KEY}"}}
    with pytest.raises(MCPServerFailed, match="sk-of-pages") as error, tools({"x": server}, seconds=5):
        pass
    assert "PROVIDER_API_KEY" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"x": {}}, "MCP server x: give it either a command"),
        ({"x": {"command": "a", "argz": []}}, "MCP server x.argz: Extra inputs"),
        ({"mcpServers": []}, "valid dictionary"),
        ({"x": {"command": "a", "env": {"A": "${NOT_SET}"}}}, "needs the environment variable NOT_SET"),
        ("no-such-file.json", "no-such-file.json: No such file"),
    ],
)
def test_a_wrong_description_names_the_fix(given: Any, said: str) -> None:
    """Nothing is started."""
    with pytest.raises(InvalidInputs, match=said), tools(given):
        pass


def test_the_form_of_other_programs_is_read_from_a_file(tmp_path: Path) -> None:
    """With or without the key above it."""
    path = tmp_path / "mcp.json"
    path.write_text(json.dumps({"mcpServers": {"pages": {"type": "stdio", **PAGES}}}))
    assert read_servers(path)["pages"].args == read_servers({"pages": PAGES})["pages"].args
    path.write_text("{")
    with pytest.raises(InvalidInputs, match="no valid JSON"):
        read_servers(path)
