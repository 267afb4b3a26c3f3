"""A local GGUF model as a `dspy.LM` in this process, or behind an OpenAI-compatible server."""

from rlm_dspy.embedded.catalogue import CATALOGUE, CatalogueModel
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
