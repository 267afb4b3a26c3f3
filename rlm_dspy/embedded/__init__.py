"""A local GGUF model as a `dspy.LM` in this process, or behind an OpenAI-compatible server."""

from rlm_dspy.embedded.engine import (
    AsyncEmbeddedEngine,
    EmbeddedEngine,
    ModelUnavailable,
    embedded_lm,
    main,
    serve,
)

__all__ = ["AsyncEmbeddedEngine", "EmbeddedEngine", "ModelUnavailable", "embedded_lm", "main", "serve"]
