"""A local GGUF model as a `dspy.LM` in this process, or behind an OpenAI-compatible server.

The engine is imported on first use: listing and downloading models does not need DSPy.
"""

import importlib
from typing import TYPE_CHECKING

from rlm_dspy.embedded.model_catalog import CATALOGUE, CatalogueModel
from rlm_dspy.embedded.pull import PullFailed, pull_model

if TYPE_CHECKING:
    from rlm_dspy.embedded.engine import (
        AsyncEmbeddedEngine,
        EmbeddedEngine,
        ModelUnavailable,
        embedded_lm,
        main,
        serve,
    )

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
        return getattr(importlib.import_module("rlm_dspy.embedded.engine"), name)
