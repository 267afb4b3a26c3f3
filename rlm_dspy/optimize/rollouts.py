"""Runs a program on examples, and keeps the demos of finished ones, so that an interrupted compile can resume."""

from __future__ import annotations

import inspect
import logging
import uuid
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar

import dspy
from pydantic import BaseModel

from rlm_dspy._dspy_compat import input_names
from rlm_dspy.cache import digest
from rlm_dspy.cache.metric_identity import Identifier, source_of
from rlm_dspy.json_values import jsonable
from rlm_dspy.optimize.demos import Demo
from rlm_dspy.redaction import lm_state
from rlm_dspy.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from rlm_dspy.cache import SubCallCache

Found = dict[str, list[Demo]]
T = TypeVar("T")
_logger = logging.getLogger("dspy.rlm_dspy")


def found_once(cache: SubCallCache | None, key: str, example: dspy.Example, run: Callable[[], Found]) -> Found:
    """Return the demos of an example from the cache, or by running it. An example that fails is run again.

    Args:
        cache: The cache of finished examples; None for no cache.
        key: What the demos depend on besides the example; see `key_of`.
        example: The example.
        run: Runs it.
    """
    if cache is None:
        return run()
    kept, _ = cache.once(digest(key, example), lambda: _mapped(_dumped, run()))
    return _mapped(_loaded, kept)


def _mapped(function: Callable[[Any], T], found: Mapping[str, list[Any]]) -> dict[str, list[T]]:
    return {name: [function(demo) for demo in demos] for name, demos in found.items()}


def run_each(
    run: Callable[[dspy.Example], T],
    examples: Sequence[dspy.Example],
    *,
    threads: int = 1,
    max_errors: int | None = None,
) -> list[T]:
    """Return what `run` returns for each example, in order; those that raise are left out, with a warning.

    Args:
        run: The function; called in a copy of the caller's context.
        examples: Any examples.
        threads: Concurrent examples.
        max_errors: How many may raise; the next error is raised, and no more examples start. At most, and with
            None, all but one.

    Raises:
        Exception: What an example raised.
    """
    failed: list[Exception] = []
    allowed = min(len(examples) - 1, len(examples) if max_errors is None else max_errors)

    def attempt(example: dspy.Example) -> list[T]:
        try:
            return [run(example)]
        except Exception as error:
            failed.append(error)
            if len(failed) > allowed:
                raise
            _logger.warning("An example failed: %s: %s", type(error).__name__, one_line(str(error), 300))
            return []

    if threads == 1:
        return [result for example in examples for result in attempt(example)]
    with ThreadPoolExecutor(threads, thread_name_prefix="rlm-compile") as pool:
        waiting = [pool.submit(copy_context().run, attempt, example) for example in examples]
        try:
            for future in as_completed(waiting):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [result for future in waiting for result in future.result()]


def key_of(program: dspy.Module, lm: dspy.BaseLM, *settings: Any) -> str:
    """Return the key of a compile's runs: the program and its parts, the models, the settings.

    Tools are identified by their source, if available; functions in settings, such as a metric, by their code and
    the values that they read. If one cannot be identified, every call returns a new key, and a warning is logged.
    """
    learned = [
        (name, p.signature.dump_state(), p.demos, getattr(p, "demos_per_run", None), identity_of(p.lm))
        for name, p in program.named_predictors()
    ]
    parts = [(name, _made_of(part)) for name, part in program.named_sub_modules()]
    given = [_metric_identity(value) if callable(value) else value for value in settings]
    return digest(type(program).__qualname__, learned, parts, identity_of(lm), given)


def _metric_identity(metric: Callable[..., Any]) -> Any:
    """Return the identity of a metric, or a new value at each call if it cannot be identified."""
    identifier = Identifier()
    found = identifier.of(metric)
    if not identifier.unknown:
        return found
    _logger.warning(
        "Finished runs are not reused: the metric holds an object of the type %s, which cannot be identified. "
        "Make the metric a function of plain values, or define a __getstate__ that omits the object.",
        identifier.unknown[0],
    )
    return uuid.uuid4().hex


def identity_of(value: object) -> str:
    """Return a text that identifies a setting; for an LM a digest of all that its answers depend on."""
    if isinstance(value, dspy.BaseLM):
        return digest(lm_state(value))
    return repr(value) if value is None or isinstance(value, str | int | float) else type(value).__qualname__


def with_inputs_set(examples: Iterable[dspy.Example]) -> list[dspy.Example]:
    """Return the examples as a list.

    Raises:
        ValueError: If one has no inputs set.
    """
    listed = list(examples)
    if any(input_names(example) is None for example in listed):
        raise ValueError("An example has no inputs set; set them with example.with_inputs('context', ...).")
    return listed


def _made_of(module: dspy.Module) -> Any:
    """Return the settings of a module without what its predictors have learned."""
    signature, tools = getattr(module, "signature", None), getattr(module, "tools", None) or {}
    functions = tools.items() if isinstance(tools, dict) else enumerate(tools)
    sources = [(name, _source(tool.func if isinstance(tool, dspy.Tool) else tool)) for name, tool in functions]
    return type(module).__qualname__, str(signature), sources, repr(getattr(module, "limits", None))


def _source(function: Callable[..., Any]) -> tuple[str, str]:
    """Return the name and source of a function, or the type name of another object."""
    function = inspect.unwrap(function)
    return getattr(function, "__qualname__", type(function).__qualname__), source_of(function)


def _dumped(demo: Demo) -> dict[str, Any]:
    fields = {n: v.model_dump(mode="json") if isinstance(v, BaseModel) else v for n, v in demo.example.items()}
    return {**vars(demo), "example": jsonable(fields)}


def _loaded(kept: Mapping[str, Any]) -> Demo:
    """Return a demo; its environment and trajectory stay plain data, as those of a program that was loaded."""
    return Demo(**{**kept, "example": dspy.Example(**kept["example"])})
