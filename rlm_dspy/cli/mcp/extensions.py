"""The skills and the MCP servers of a run: from options and from the configuration file."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from rlm_dspy.mcp.servers import read_servers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import rlm_dspy
    from rlm_dspy.cli.user.configuration import Configuration
    from rlm_dspy.skills import Skills


def skills_of(folders: Sequence[str]) -> list[Skills]:
    """Return the tool that loads the skills in some folders, if there are any folders.

    Raises:
        ValueError: If a folder has no skill, or an invalid one.
    """
    from rlm_dspy.skills import Skills

    return [Skills(*folders)] if folders else []


@contextlib.contextmanager
def mcp_tools(rlm: rlm_dspy.RLM, files: Sequence[Path] | None, configuration: Configuration) -> Iterator[None]:
    """Give an RLM the tools of MCP servers in this scope.

    Args:
        rlm: The RLM.
        files: JSON files of the option `--mcp`.
        configuration: Names servers too; a server in a file replaces one of the same name in it.

    Raises:
        InvalidInputs: If the description of a server is not valid.
        MCPServerFailed: If one cannot be started or reached.
    """
    servers = dict(configuration.mcp_servers)
    for file in files or []:
        servers |= read_servers(file)
    if not servers:
        yield
        return
    from rlm_dspy.mcp import tools

    with tools(servers) as found:
        rlm.tools = [*rlm.tools.values(), *found]
        yield
