"""Serves a program over HTTP, with OpenAI's chat completions and responses. It needs the extra `serve`."""

try:
    import prometheus_client as _metrics  # noqa: F401 (one of the extra's packages)
    import starlette as _framework  # noqa: F401 (another)
    import uvicorn as _server  # noqa: F401 (another)
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"rlm_dspy.service needs the package {error.name}: pip install 'dspy-recursive-lm[serve]' "
        "(in the checkout: --extra serve).",
        name=error.name,
    ) from error

from rlm_dspy.service.app import create_app
from rlm_dspy.service.server import serve

__all__ = ["create_app", "serve"]
