"""Recursive Language Models for DSPy: typed answers over inputs far larger than a model's window."""

from rlm_dspy.cache.sub_call_cache import SubCallCache
from rlm_dspy.errors import InvalidInputs, LimitExceeded, RLMError
from rlm_dspy.inputs import Text
from rlm_dspy.limits import Limits
from rlm_dspy.loop.rlm import RLM

__all__ = ["RLM", "InvalidInputs", "LimitExceeded", "Limits", "RLMError", "SubCallCache", "Text"]
