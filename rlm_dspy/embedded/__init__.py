"""A local GGUF model as a `dspy.LM` in this process, or behind an OpenAI-compatible server.

What does not belong to the catalogue is imported on first use: the engine needs DSPy, a download needs pydantic.
"""

import importlib
from typing import TYPE_CHECKING

from rlm_dspy.embedded.model_catalog import CATALOGUE, CatalogueModel

if TYPE_CHECKING:
    from rlm_dspy.embedded.engine import (
        AsyncEmbeddedEngine,
        EmbeddedEngine,
        ModelUnavailable,
        embedded_lm,
        main,
        serve,
    )
    from rlm_dspy.embedded.pull import PullFailed, pull_model

__all__ = [
    "CATALOGUE",
    "AsyncEmbeddedEngine",
    "CatalogueModel",
    "EmbeddedEngine",
    "ModelUnavailable",
    "PullFailed",
    "embedded_lm",
    "main",
    "pull_model",
    "serve",
]


if not TYPE_CHECKING:  # a type checker would take any name for one of ours

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = "pull" if name in {"PullFailed", "pull_model"} else "engine"
        return getattr(importlib.import_module(f"rlm_dspy.embedded.{module}"), name)
