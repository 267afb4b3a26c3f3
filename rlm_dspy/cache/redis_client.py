"""Creates the client of a Redis server."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import redis

_SERVER_SECONDS = 10.0
"""Seconds that the server may take to answer."""


def redis_client(url: str, retries: int = 3) -> redis.Redis:
    """Return a client, which connects when it is first used.

    Args:
        url: Where the server is, e.g. `redis://host:6379/0`.
        retries: How often a command is repeated, within a second, if its connection fails.

    Raises:
        ImportError: If the extra `redis` is not installed.
        ValueError: If the address is not valid.
    """
    try:
        import redis  # noqa: PLC0415 (an extra)
        from redis.backoff import ExponentialBackoff  # noqa: PLC0415
        from redis.retry import Retry  # noqa: PLC0415
    except ImportError as error:
        message = "'redis://...' needs the extra `redis`: pip install 'dspy-recursive-lm[redis]'."
        raise ImportError(message) from error
    return redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=_SERVER_SECONDS,
        socket_connect_timeout=_SERVER_SECONDS,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.1), retries),
    )
