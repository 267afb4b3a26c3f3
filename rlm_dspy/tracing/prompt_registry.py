"""Saves policies to MLflow's prompt registry, and loads them from it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow

from rlm_dspy import signatures
from rlm_dspy.text import write_whole

if TYPE_CHECKING:
    import os

_MOST_CHARS = 100_000


def register_policy(policy: str | os.PathLike[str], name: str | None = None, *, message: str | None = None) -> str:
    """Save a policy to the prompt registry, as a new version of a prompt.

    Args:
        policy: The path of a policy file, or the name of a shipped policy.
        name: The name in the registry; default: the name of the file.
        message: A description of the change.

    Returns:
        Its address, `prompts:/<name>/<version>`.

    Raises:
        ValueError: If it is not a policy, or too long for the registry.
    """
    content = signatures.read_policy(policy)
    text = json.dumps(content, indent=1, ensure_ascii=False)
    if len(text) > _MOST_CHARS:
        raise ValueError(
            f"{policy} has {len(text):,} characters; the prompt registry takes {_MOST_CHARS:,}. Remove some demos."
        )
    tags = {"rlm_dspy.policy": str(content["version"]), "model": str(content.get("model", ""))}
    registered = mlflow.genai.register_prompt(name or Path(policy).stem, text, commit_message=message, tags=tags)
    return f"prompts:/{registered.name}/{registered.version}"


def fetch_policy(address: str, path: str | os.PathLike[str]) -> Path:
    """Write a policy of the prompt registry to a file for `RLM(policy=...)`.

    Args:
        address: `prompts:/<name>/<version>`, `prompts:/<name>@<alias>`, or a name for its newest version.
        path: The file to write.

    Returns:
        The path.

    Raises:
        ValueError: If the prompt is not a policy; nothing is written.
        OSError: If the file cannot be written.
    """
    found = mlflow.genai.load_prompt(address if address.startswith("prompts:") else f"prompts:/{address}@latest")
    text, target = f"{found.template}\n", Path(path)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / target.name
        copy.write_text(text, encoding="utf-8")
        try:
            signatures.load_policy(copy)
        except ValueError as error:
            raise ValueError(f"{address} contains no policy: {error}") from error
    write_whole(text, target)
    return target
