"""The command `rlm-dspy mcp FOLDER...`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from typer import Argument, Option

from rlm_dspy.cli.ask import AskOptions, make_rlm
from rlm_dspy.cli.errors import errors_as_lines, quiet_dspy, tell
from rlm_dspy.cli.mcp.extensions import mcp_tools
from rlm_dspy.cli.options import Debug, Interpreter, Mcp, Model, Skills, command
from rlm_dspy.cli.signals import hangup_as_sigterm
from rlm_dspy.cli.task import WITH_TEXT
from rlm_dspy.cli.user.completion import check_model, complete_model
from rlm_dspy.cli.user.ui import check_port
from rlm_dspy.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class McpOptions:
    """The arguments and options of `rlm-dspy mcp`."""

    folders: Annotated[
        list[str], Argument(metavar="FOLDER", help="Clients may ask about the files below.", show_default=False)
    ]
    signature: Annotated[str, Option(help="The fields: the files, the question, and the answers.")] = WITH_TEXT
    model: Model = None
    sub_model: Annotated[
        str | None,
        Option(
            help="Model for sub-calls; default: the same model.",
            autocompletion=complete_model,
            callback=check_model,
        ),
    ] = None
    api_base: Annotated[str | None, Option(help="Address of the model's server.")] = None
    max_iters: Annotated[int | None, Option(min=1, help="Maximum turns of a question.")] = None
    max_cost: Annotated[float | None, Option(help="Maximum cost of a question in US dollars.")] = None
    max_seconds: Annotated[float | None, Option(help="Time limit of a question in seconds.")] = None
    interpreter: Interpreter = None
    skills: Skills = None
    mcp: Mcp = None
    port: Annotated[
        int | None,
        Option(min=0, max=65_535, help="Serve Streamable HTTP at 127.0.0.1, not standard input and output."),
    ] = None
    debug: Debug = False


@command
def mcp(options: McpOptions) -> None:
    """Answer questions of MCP clients about the files below folders over standard input and output.

    Clients can list these files, ask about them, go on asking and read how an answer was found. They reach no
    other files, no hidden ones and no links. Models, keys and limits are those of the configuration
    file, as with `ask`.

    \b
    In the configuration of an MCP client:
      {"mcpServers": {"papers": {"command": "rlm-dspy", "args": ["mcp", "/home/me/papers"]}}}
    """  # noqa: D301 (\b keeps the line breaks)
    with errors_as_lines(debug=options.debug), quiet_dspy():
        from rlm_dspy.cli.user.configuration import load_configuration

        try:
            from rlm_dspy.mcp.server import make_server
        except ImportError as error:
            raise UsageError("rlm-dspy mcp needs: pip install 'dspy-recursive-lm[mcp]'.") from error
        from rlm_dspy.mcp.folders import Folders

        folders, configuration = Folders(options.folders), load_configuration()
        shared = {name: value for name, value in vars(options).items() if name not in ("folders", "port")}
        lm, rlm = make_rlm(AskOptions(question="", **shared), configuration, options.signature)
        with mcp_tools(rlm, options.mcp, configuration):
            server = make_server(rlm, lm, folders)
            if options.port is None:
                server.run()
            else:
                check_port(options.port)
                address = f"http://127.0.0.1:{options.port}/mcp"
                tell(f"MCP at {address} for {', '.join(folders.names)}. Stop it with Ctrl-C.")
                with hangup_as_sigterm():
                    server.run("streamable-http", host="127.0.0.1", port=options.port)
    raise typer.Exit
