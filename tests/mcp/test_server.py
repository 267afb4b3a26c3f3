"""`rlm-dspy mcp`: a real MCP client over a real child process, a scripted model behind a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from mcp import Client, StdioServerParameters
from typer.testing import CliRunner

from rlm_dspy import RLM
from rlm_dspy.cli.app import app
from rlm_dspy.errors import InvalidInputs
from rlm_dspy.inputs import Files, Text
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.mcp.conversations import Conversations
from rlm_dspy.mcp.folders import Folders, source_of
from rlm_dspy.sessions.kept import ConversationGone
from rlm_dspy.testing import ScriptedLM
from tests.playing import block
from tests.provider_server import ProviderServer, Said, chat, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

SECONDS = 120
KEY = "sk-planted-0123456789abcdef"


@dataclass
class Model:
    """A model that answers with code by the last question that a request holds.

    Attributes:
        codes: The code by a word of the question.
        base: The address of its server.
        fails: Whether it answers with an error.
        asked: The texts of each request.
    """

    codes: dict[str, str]
    base: str = ""
    fails: bool = False
    asked: list[list[str]] = field(default_factory=list)

    def say(self, texts: list[str]) -> Said:
        """Answer with the code for the last of the questions that a request names."""
        self.asked.append(texts)
        found = [(at, word) for word in self.codes if (at := "\n".join(texts).rfind(word)) >= 0]
        _, word = max(found)
        return Said(block(self.codes[word]))

    def answer(self, said: Said, body: Any) -> tuple[int, Any]:
        """Fail with an error that quotes a key and a path, if told so."""
        if self.fails:
            return 401, {"error": {"message": f"wrong key {KEY} in /home/me/keys.txt", "code": "invalid_api_key"}}
        return 200, chat(said, body)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with two files, a link out of it and a hidden file; a secret lies beside it."""
    folder = tmp_path / "papers"
    (folder / "deep").mkdir(parents=True)
    (folder / "one.md").write_text("Ovid Systems is in Tallinn.")
    (folder / "deep" / "two.md").write_text("Castellan Labs is elsewhere.")
    (folder / ".env").write_text(f"KEY={KEY}")
    (tmp_path / "secret.txt").write_text("planted")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "up").symlink_to(tmp_path)
    return folder


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    """Serve the model."""
    model = Model(
        {
            "Q-COUNT": "n = len(context)\nprint('counted')\nSUBMIT(answer=str(n))",
            "Q-AGAIN": "SUBMIT(answer=f'{n} were counted')",
            "Q-ENDLESS": "import time\ntime.sleep(3600)",
            "Q-LONG": "SUBMIT(answer='x' * 1_000_000)",
            "Q-NAMES": "SUBMIT(answer=str([name for name in context]))",
        }
    )
    with serving(ProviderServer(model.say, model.answer)) as server:
        model.base = f"{server.base}/v1"
        yield model


@contextlib.asynccontextmanager
async def connected(
    model: Model, *folders: Path, cwd: Path, options: tuple[str, ...] = ()
) -> AsyncIterator[Client]:
    """Start `rlm-dspy mcp` and connect a client."""
    command = ["-m", "rlm_dspy", "mcp", *map(str, folders), "--model", "openai/test", "--api-base", model.base]
    environment = {
        "DSPY_CACHEDIR": str(cwd / "cache"),
        "OPENAI_API_KEY": KEY,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "RLM_DSPY_CONFIG": os.devnull,
        "HOME": str(cwd),
    }
    server = StdioServerParameters(command=sys.executable, args=[*command, *options], env=environment, cwd=cwd)
    async with asyncio.timeout(SECONDS), Client(server, read_timeout_seconds=SECONDS) as client:
        yield client


class Repl(LocalPythonInterpreter):
    """Knows whether it was shut down."""

    ended = False

    def shutdown(self) -> None:
        """Shut it down."""
        self.ended = True
        super().shutdown()


def reply_with_length(_messages: object) -> str:
    """Reply as a model that measures the text."""
    return block("SUBMIT(answer=str(len(context)))")


async def said_by(client: Client, tool: str, **arguments: Any) -> str:
    """Call a tool; return its text, whether it failed or not."""
    result = await client.call_tool(tool, arguments)
    return "".join(getattr(part, "text", "") for part in result.content)


async def test_a_client_asks_goes_on_and_reads_the_report(folder: Path, model: Model, tmp_path: Path) -> None:
    """Variables of the first question are there in the second; the client hears of each turn."""
    heard: list[tuple[float, str | None]] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        heard.append((done, message))

    async with connected(model, folder, cwd=tmp_path) as client:
        tools = {tool.name for tool in (await client.list_tools()).tools}
        listed = await said_by(client, "list_files")
        first = await client.call_tool("ask", {"question": "Q-COUNT"}, progress_callback=progress)
        answer = first.structured_content
        second = await client.call_tool("go_on", {"conversation": answer["conversation"], "question": "Q-AGAIN"})
        report = await said_by(client, "report", conversation=answer["conversation"])
        one = await client.call_tool("ask", {"question": "Q-COUNT", "pattern": "one.md"})
    assert tools == {"ask", "go_on", "list_files", "report"}
    assert listed.splitlines() == ["2 files, 55 bytes", "deep/two.md (28 bytes)", "one.md (27 bytes)"]
    assert (answer["outputs"], answer["stop"], answer["turns"]) == ({"answer": "2"}, "submitted", 1)
    assert second.structured_content["outputs"] == {"answer": "2 were counted"}
    assert one.structured_content["outputs"] == {"answer": "27"}
    assert heard == [(1, "turn 1: SUBMIT")]
    assert "Q-AGAIN" in report
    assert ">>> SUBMIT(answer=f'{n} were counted')" in report


async def test_an_unknown_argument_is_refused_and_not_ignored(folder: Path, model: Model, tmp_path: Path) -> None:
    """`files` for `pattern` would be asked about all files, and paid for."""
    async with connected(model, folder, cwd=tmp_path) as client:
        told = [
            await said_by(client, "ask", question="Q-NAMES", files=["one.md"]),
            await said_by(client, "list_files", path="one.md"),
        ]
        schemas = [tool.input_schema for tool in (await client.list_tools()).tools]
    assert all("Extra inputs are not permitted" in each for each in told), told
    assert [schema["additionalProperties"] for schema in schemas] == [False] * 4


def test_a_port_that_is_in_use_is_told_before_the_address(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        options = ["--model", "openai/m", "--api-base", "http://127.0.0.1:9/v1", "--port", port]
        found = CliRunner().invoke(app, ["mcp", str(folder), *options])
    assert (found.exit_code, found.stderr) == (3, f"Error: port {port} is in use; choose another with --port.\n")


async def test_nothing_outside_of_the_folders_is_reached(folder: Path, model: Model, tmp_path: Path) -> None:
    """Not by a pattern, a folder's name, a link, nor by the code of a run; errors name no path outside."""
    async with connected(model, folder, cwd=tmp_path) as client:
        tries = [
            {"pattern": "../secret.txt"},
            {"pattern": str(tmp_path / "secret.txt")},
            {"pattern": "link.txt"},
            {"pattern": "up/secret.txt"},
            {"pattern": ".env"},
            {"pattern": "**/.env"},
            {"pattern": "one.md\x00"},
            {"folder": ".."},
            {"folder": str(tmp_path)},
            {"pattern": "/".join(["**"] * 90)},
            {"pattern": "x" * 10_000},
        ]
        answers = [await said_by(client, tool, question="Q-NAMES", **each) for each in tries for tool in ("ask",)]
        listed = [await said_by(client, "list_files", **each) for each in tries]
        known = await said_by(client, "ask", question="Q-NAMES")
        unknown = await said_by(client, "report", conversation="../../etc/passwd")
    everything = "\n".join([*answers, *listed, known, unknown])
    assert "planted" not in everything
    assert KEY not in everything
    assert str(tmp_path) not in "\n".join([*answers, *listed, known]).replace(
        str(tries[1]["pattern"]), ""
    ).replace(str(tries[8]["folder"]), "")
    assert "['deep/two.md', 'one.md']" in known
    assert "There is no such conversation" in unknown
    assert sum("matches" in each for each in answers) >= 6


async def test_errors_of_a_run_tell_no_keys_and_answers_are_bounded(
    folder: Path, model: Model, tmp_path: Path
) -> None:
    """The server's own log has what was said, without the key."""
    async with connected(model, folder, cwd=tmp_path) as client:
        model.fails = True
        try:
            failed = await said_by(client, "ask", question="Q-COUNT")
        finally:
            model.fails = False
        long = await said_by(client, "ask", question="Q-LONG")
    assert failed.startswith("Error executing tool ask: The run failed: ")
    assert KEY not in failed
    assert "/home/me" not in failed
    assert "characters left out" in long
    assert len(long) < 200_000


async def test_a_cancelled_question_ends_its_run_and_others_go_on(
    folder: Path, model: Model, tmp_path: Path
) -> None:
    """Its code would have slept for an hour; others are answered meanwhile and afterwards."""
    async with connected(model, folder, cwd=tmp_path) as client:
        endless = asyncio.create_task(client.call_tool("ask", {"question": "Q-ENDLESS"}))
        while not any("Q-ENDLESS" in text for texts in model.asked for text in texts):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        questions = [client.call_tool("ask", {"question": "Q-COUNT"}) for _ in range(3)]
        meanwhile = [each.structured_content["outputs"]["answer"] for each in await asyncio.gather(*questions)]
        endless.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await endless
        held = [client.call_tool("ask", {"question": "Q-COUNT"}) for _ in range(4)]  # all that run at once
        after = [each.structured_content["outputs"]["answer"] for each in await asyncio.gather(*held)]
    assert (meanwhile, after) == (["2"] * 3, ["2"] * 4)


async def test_conversations_are_bounded_and_closed_at_the_end() -> None:
    """The oldest of nine is closed; after the end no REPL is open."""
    opened: list[Repl] = []

    def make() -> Repl:
        opened.append(Repl())
        return opened[-1]

    rlm, lm = RLM("context, question -> answer", interpreter_factory=make), ScriptedLM(reply_with_length)
    conversations = Conversations(rlm, lm)
    names = [
        (await conversations.begin(Text("x" * n), "How long?", lambda *_: None)).conversation for n in range(9)
    ]
    with pytest.raises(ConversationGone, match="Begin another"):
        await conversations.go_on(names[0], "And now?", lambda *_: None)
    again = await conversations.go_on(names[8], "And now?", lambda *_: None)
    assert again.outputs == {"answer": "8"}
    await conversations.close()
    assert [each.ended for each in opened] == [True] * 9


def test_folders_of_one_name_get_names_of_their_own(tmp_path: Path) -> None:
    """And must be named then; a folder that has become a link is not read."""
    for name in ("a/notes", "b/notes"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "x.txt").write_text(name)
    folders = Folders([tmp_path / "a" / "notes", tmp_path / "b" / "notes"])
    assert folders.names == ["notes", "notes-2"]
    text = source_of(folders.files("notes-2", "x.txt"))
    assert isinstance(text, Text)
    assert str(text) == "b/notes"
    with pytest.raises(InvalidInputs, match="The folders are 'notes', 'notes-2'"):
        folders.files("", "**/*")
    (tmp_path / "b" / "notes" / "x.txt").unlink()
    (tmp_path / "b" / "notes").rmdir()
    (tmp_path / "b" / "notes").symlink_to(tmp_path / "a")
    with pytest.raises(InvalidInputs, match="has become a link"):
        folders.files("notes-2", "**/*")


def test_a_huge_file_is_given_as_files_and_not_read_whole(tmp_path: Path) -> None:
    """As is one that is no text."""
    with (tmp_path / "huge.txt").open("wb") as file:
        file.truncate(50_000_000_000)
    (tmp_path / "binary.bin").write_bytes(bytes(range(256)))
    folders = Folders([tmp_path])
    assert isinstance(source_of(folders.files("", "huge.txt")), Files)
    with pytest.raises(InvalidInputs, match=r"binary\.bin cannot be read"):
        source_of(folders.files("", "binary.bin"))


def test_a_wrong_folder_names_the_fix(tmp_path: Path) -> None:
    """Before anything is served."""
    with pytest.raises(InvalidInputs, match="is not a folder"):
        Folders([tmp_path / "none"])
    with pytest.raises(InvalidInputs, match="'' is not a folder"):  # nor is the working directory meant
        Folders([""])
