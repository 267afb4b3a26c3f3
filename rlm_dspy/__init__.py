"""Recursive Language Models for DSPy: typed answers over inputs far larger than a model's window.

The names are imported on first use: DSPy takes seconds to import, and `rlm-dspy --help` does not need it.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlm_dspy.cache.sub_call_cache import SubCallCache
    from rlm_dspy.errors import InvalidInputs, LimitExceeded, RLMError
    from rlm_dspy.inputs import Files, Table, Text
    from rlm_dspy.limits import Limits
    from rlm_dspy.loop.rlm import RLM
    from rlm_dspy.report.representation import RunPrediction

__all__ = [
    "RLM",
    "Files",
    "InvalidInputs",
    "LimitExceeded",
    "Limits",
    "RLMError",
    "RunPrediction",
    "SubCallCache",
    "Table",
    "Text",
]

_MODULES = {
    "RLM": "rlm_dspy.loop.rlm",
    "InvalidInputs": "rlm_dspy.errors",
    "LimitExceeded": "rlm_dspy.errors",
    "Limits": "rlm_dspy.limits",
    "RunPrediction": "rlm_dspy.report.representation",
    "RLMError": "rlm_dspy.errors",
    "SubCallCache": "rlm_dspy.cache.sub_call_cache",
    "Files": "rlm_dspy.inputs",
    "Table": "rlm_dspy.inputs",
    "Text": "rlm_dspy.inputs",
}
"""The module that defines each name."""
_PUBLIC = {"batch", "cache", "compute", "coverage", "embedded", "errors", "events", "grounding", "inputs"}
_PUBLIC |= {"interpreters", "limits", "mcp", "models", "observe", "optimize", "signatures", "skills", "testing"}
_PUBLIC |= {"approval", "service", "sessions", "tracing", "trajectory"}
"""Modules that are attributes too, without an import of their own."""


if not TYPE_CHECKING:  # a type checker would take any name for one of ours

    def __getattr__(name: str) -> object:
        if name in _PUBLIC:
            return importlib.import_module(f"rlm_dspy.{name}")
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PUBLIC})
