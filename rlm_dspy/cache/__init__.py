"""Caches the answers to sub-calls in memory, or in a file that processes share."""

from rlm_dspy.cache.sub_call_cache import SubCallCache, digest

__all__ = ["SubCallCache", "digest"]
