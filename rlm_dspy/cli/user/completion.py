"""Completes the names of models in a shell. It imports no package of a run, to be fast."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import typer

from rlm_dspy.embedded.model_catalog import CATALOGUE

_TABLE = "model_prices_and_context_window_backup.json"
_OTHERS = ("embedded", "lm_studio/", "ollama/")


def check_model(name: str | None) -> str | None:
    """Reject an empty name of a model, which an unset shell variable gives."""
    if name is not None and not name.strip():
        raise typer.BadParameter("the name is empty. Name a model, or omit the option for the default.")
    return name


def complete_model(incomplete: str) -> list[str]:
    """Return the names of models that begin with a text: those of this package, then those of LiteLLM's table.

    Without a slash, providers represent their models if several fit. Names with a colon are left out, because a
    shell reads a colon as the end of a word.
    """
    names = [*(model.name for model in CATALOGUE), *_OTHERS, *_of_litellm()]
    found = [name for name in names if name.startswith(incomplete) and ":" not in name]
    if "/" in incomplete:
        return found
    providers = dict.fromkeys("".join(name.partition("/")[:2]) for name in found)
    return list(providers) if len(providers) > 1 else found


def _of_litellm() -> list[str]:
    """Return the chat models as `provider/name`; none if LiteLLM keeps its table elsewhere."""
    spec = find_spec("litellm")
    folders = spec.submodule_search_locations if spec else None
    try:
        table = json.loads(Path((folders or [""])[0], _TABLE).read_bytes())
    except (OSError, ValueError):
        return []
    chat = {name: entry for name, entry in table.items() if entry.get("mode") == "chat" and "*" not in name}
    return sorted(
        name if "/" in name else f"{entry['litellm_provider']}/{name}"
        for name, entry in chat.items()
        if "litellm_provider" in entry
    )
