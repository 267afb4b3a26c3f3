"""Defines `RayExecutor`: Ray's tasks as a `concurrent.futures.Executor`."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class RayExecutor(Executor):
    """Runs each task on the cluster that Ray is connected to; without one, it starts one on this machine.

    Ray itself runs the task of a killed worker again, three times at most.

    Raises:
        ImportError: If the extra `ray` is not installed.
    """

    def __init__(self) -> None:
        try:
            import ray  # noqa: PLC0415 (an extra)
        except ImportError as error:
            raise ImportError("executor='ray' needs: pip install 'dspy-recursive-lm[ray]'.") from error
        self._is_own = not ray.is_initialized()
        if self._is_own:
            ray.init(include_dashboard=False, logging_level="warning")
        self._task = ray.remote(_call)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start a task."""
        future: Future[Any] = self._task.remote(partial(fn, *args, **kwargs)).future()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Stop the cluster if it was started here."""
        import ray  # noqa: PLC0415 (an extra)

        if self._is_own:
            ray.shutdown()


def _call(task: Callable[[], Any]) -> Any:
    return task()
