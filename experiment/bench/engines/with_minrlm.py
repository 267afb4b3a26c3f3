"""`minrlm`: code runs in this process."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from minrlm import RLM
from openai import OpenAI
from sharing import made_once

if TYPE_CHECKING:
    from worker import Task

VERSION = f"minrlm {version('minrlm')}"
NOTES = "it shows 2,000 characters of a turn whatever is asked"


def run(task: Task) -> str | None:
    """Run once."""
    shared = "/run/" not in task.base_url
    reached: Any = {"base_url": task.base_url, "api_key": task.api_key}
    if shared:  # it asks one after the other in a batch then, of which runs that share an address have none
        reached = {"client": _client(task.base_url, task.api_key)}
    rlm = RLM(task.model, **reached, max_iterations=task.limits.turns, max_sub_llm_calls=task.limits.calls)
    return str(rlm.completion(task.question, task.context).response)


@made_once
def _client(base_url: str, api_key: str) -> OpenAI:
    """Return one client for all runs at the same address."""
    return OpenAI(base_url=base_url, api_key=api_key)
