"""Serves an RLM over MCP: clients ask about files below some folders, ask further, and read what a run did."""

from __future__ import annotations

import asyncio
import contextlib
import types
from typing import TYPE_CHECKING, Annotated

import anyio
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from pydantic import BaseModel, Field

from rlm_dspy.errors import InvalidInputs
from rlm_dspy.mcp.conversations import Answer, Conversations
from rlm_dspy.mcp.folders import source_of
from rlm_dspy.redaction import safe_message
from rlm_dspy.sessions.kept import ConversationBusy, ConversationGone
from rlm_dspy.text import print_to_stderr, printable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    import dspy

    from rlm_dspy.loop.rlm import RLM
    from rlm_dspy.mcp.conversations import OnTurn
    from rlm_dspy.mcp.folders import Folders

_INSTRUCTIONS = (
    "Answers questions about texts, documents and tables of any size in the folders {}: `ask` about the files "
    "that a pattern names, `go_on` with further questions about them, `report` shows how an answer was found. A "
    "question takes seconds to minutes."
)
Question = Annotated[str, Field(min_length=1, max_length=20_000, description="The question, in plain words.")]
Folder = Annotated[str, Field(max_length=300, description="The name of a folder; empty if there is only one.")]
Pattern = Annotated[
    str,
    Field(max_length=300, description="Which files: a name, '*.md', '**/*.md' at any depth, '**/*' for all."),
]
Conversation = Annotated[str, Field(max_length=100, description="As an answer of `ask` names it.")]


def make_server(rlm: RLM, lm: dspy.BaseLM, folders: Folders) -> MCPServer:
    """Return an MCP server for `server.run()`, or `server.run("streamable-http", port=...)`.

    Args:
        rlm: The RLM that answers.
        lm: The LM of its turns.
        folders: The files that clients may ask about.

    Raises:
        InvalidInputs: If the signature of the RLM does not take files and a question.
    """
    conversations = Conversations(rlm, lm)

    @contextlib.contextmanager
    def errors_for_client() -> Iterator[None]:
        """Send the client its own mistakes, but only the type of other errors, which may name paths and keys."""
        try:
            yield
        except (InvalidInputs, ConversationGone, ConversationBusy) as error:
            raise ToolError(str(error)) from None
        except Exception as error:  # noqa: BLE001 (whatever ends a run)
            print_to_stderr(printable(f"{type(error).__name__}: {safe_message(error, lm, rlm.sub_lm)}"))
            raise ToolError(f"The run failed: {type(error).__name__}. The log of the server says why.") from None

    @contextlib.asynccontextmanager
    async def closing(_: MCPServer) -> AsyncIterator[None]:
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await conversations.close()

    async def list_files(folder: Folder = "", pattern: Pattern = "**/*") -> str:
        """List the names and sizes of files."""
        with errors_for_client():
            return await asyncio.to_thread(folders.listing, folder, pattern)

    async def ask(question: Question, context: Context, folder: Folder = "", pattern: Pattern = "**/*") -> Answer:
        """Answer a question about files. Choose few files by the pattern if the question is about few."""
        with errors_for_client():
            files = await asyncio.to_thread(folders.files, folder, pattern)
            source = await asyncio.to_thread(source_of, files)
            return await conversations.begin(source, question, _progress_callback(context, rlm))

    async def go_on(conversation: Conversation, question: Question, context: Context) -> Answer:
        """Ask a further question about the same files; what was said and found before is known."""
        with errors_for_client():
            return await conversations.go_on(conversation, question, _progress_callback(context, rlm))

    async def report(conversation: Conversation) -> str:
        """Show how the last answer of a conversation was found: the turns, their code and output."""
        with errors_for_client():
            return conversations.report(conversation)

    tools = [_strict_tool(each) for each in (list_files, ask, go_on, report)]
    instructions = _INSTRUCTIONS.format(", ".join(map(repr, folders.names)))
    return MCPServer("rlm-dspy", instructions=instructions, log_level="ERROR", lifespan=closing, tools=tools)


def _strict_tool(function: Callable[..., Awaitable[object]]) -> Tool:
    """Return a tool that refuses unknown arguments: who misspells `pattern` would ask about all files."""
    tool = Tool.from_function(function)
    given = tool.fn_metadata.arg_model
    strict: type[BaseModel] = types.new_class(given.__name__, (given,), {"extra": "forbid"})
    tool.fn_metadata.arg_model, tool.parameters = strict, strict.model_json_schema(by_alias=True)
    return tool


def _progress_callback(context: Context, rlm: RLM) -> OnTurn:
    """Return a function that reports each turn to the client. It may be called in any thread."""
    loop = asyncio.get_running_loop()

    def report(turn: int, what: str) -> None:
        message = f"turn {turn}: {what}"
        asyncio.run_coroutine_threadsafe(context.report_progress(turn, rlm.limits.max_iters, message), loop)

    return report
