"""What the runs of one process share, as in a program of a user: clients, with their connections."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def made_once(make: Callable[..., T]) -> Callable[..., T]:
    """Return a function that makes one thing for each set of arguments, from however many threads."""
    lock, kept = threading.Lock(), functools.lru_cache(maxsize=8)(make)

    @functools.wraps(make)
    def made(*args: object) -> T:
        with lock:
            return kept(*args)

    return made
