"""`fast-rlm`: its engine is a program of Deno, which runs code in Pyodide."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import fast_rlm

if TYPE_CHECKING:
    from worker import Task

VERSION = f"fast-rlm {version('fast-rlm')}"
NOTES = "max_depth=1; money and token limits lifted"

_ENGINE = Path(fast_rlm.__file__).parent / "_engine"
_CHECK = subprocess.run(
    ["deno", "cache", "src/subagents.ts"],
    cwd=_ENGINE,
    env={**os.environ, "NO_COLOR": "1"},
    capture_output=True,
    text=True,
    check=False,
)
if _CHECK.returncode:
    said = re.search(r"^error: (.*)", _CHECK.stderr, re.MULTILINE)  # without the addresses it was loading from
    raise RuntimeError(f"deno cannot load its engine: {said[1] if said else 'it does not say why'}")


def run(task: Task) -> str | None:
    """Run once."""
    os.environ["RLM_MODEL_BASE_URL"] = task.base_url
    os.environ["RLM_MODEL_API_KEY"] = task.api_key
    config = fast_rlm.RLMConfig(
        primary_agent=task.model,
        sub_agent=task.sub_model or task.model,
        max_depth=1,
        max_calls_per_subagent=task.limits.turns,
        truncate_len=task.limits.output_chars,
        max_money_spent=1e9,
        max_completion_tokens=10**9,
        max_prompt_tokens=10**9,
        max_global_calls=task.limits.calls + task.limits.turns,
    )
    with tempfile.TemporaryDirectory() as logs:
        found = fast_rlm.run(
            task.context, config=config, instruction=task.question, verbosity="silent", log_dir=logs
        )
    return str(found["results"])
