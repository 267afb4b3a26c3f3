"""Describes the host functions that code calls, and what they raise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlm_dspy.concurrency.async_forms import is_async

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rlm_dspy.interpreters.worker.frames import Tool


def described(tools: Mapping[str, Callable[..., Any]]) -> list[Tool]:
    """Describe tools to a worker, which builds proxies for them."""
    return [
        {"name": name, "doc": getattr(tool, "__doc__", None) or "", "is_async": is_async(tool)}
        for name, tool in tools.items()
    ]


def message(error: Exception) -> str:
    """Return the message of an error; for a KeyError the key itself, empty if the error cannot say it."""
    if isinstance(error, KeyError) and len(error.args) == 1 and isinstance(error.args[0], str):
        return error.args[0]
    try:
        return str(error)
    except Exception:  # noqa: BLE001 (a tool's own class; without an answer the cell would wait for ever)
        return ""
