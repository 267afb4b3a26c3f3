"""`rlms` (`import rlm`) with its local environment: code runs in this process."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from rlm import RLM

if TYPE_CHECKING:
    from worker import Task

VERSION = f"rlms {version('rlms')}"
NOTES = "backend openai, environment local; it shows 20,000 characters of a turn whatever is asked"


def run(task: Task) -> str | None:
    """Run once."""
    backend = {"model_name": task.model, "base_url": task.base_url, "api_key": task.api_key}
    other: dict[str, Any] = {}
    if task.sub_model:
        other = {"other_backends": ["openai"], "other_backend_kwargs": [{**backend, "model_name": task.sub_model}]}
    rlm = RLM(
        backend="openai",
        backend_kwargs=backend,
        environment="local",
        max_iterations=task.limits.turns,
        **other,
    )
    return str(rlm.completion(task.context, root_prompt=task.question).response)
