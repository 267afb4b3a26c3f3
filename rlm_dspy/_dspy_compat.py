"""Collects the inner modules and private attributes of DSPy that this package needs (dspy 3.4.1).

No other module imports from inside DSPy or touches a private attribute of its objects. What a release below 3.5
moves or renames is adapted here; what it makes public leaves this file.

| name | why the public API does not suffice |
|---|---|
| `ACTIVE_CALL_ID` | the running call: callbacks get the id of a call, not of its parent |
| `BaseCallback`, `UsageTracker`, `with_callbacks` | documented, but exported nowhere |
| `CUSTOM_TYPE_MARK`, `CUSTOM_TYPE_END` | mark an image in a message; texts must not contain them |
| `HttpResponse`, `WireUsage` | where a server's usage is read |
| `SSEEvent`, `acoalesce_stream`, `coalesce_stream` | read a stream that comes by no transport of DSPy |
| `BootstrapFinetune`, `InferRules`, `append_a_rule`, `Teleprompter` | fixed by subclasses |
| `ClosedStream`, `is_chunk`, `StatusStreamingCallback` | what `dspy.streamify` sends, and who sends it |
| `find_listened_predictors`, `replace_finder` | an RLM's outputs have no predictor that a listener could name |
| `adapter_message_call` | tells whether an adapter made the messages of a call |
| `annotation_allows_none`, `get_annotation_name`, `parse_value` | parse types as DSPy's adapters do |
| `load_partial_states` | a state of a program that lacks a predictor of an RLM in it ends in a bare KeyError |
| `types_of_callers` | a second try of a string signature must find the types that the first one found |
| `model_info`, `rate`, `resolve`, `select_backend`, `value` | what DSPy knows of models without a request |
"""

from __future__ import annotations

import contextlib
import functools
import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import dspy
from dspy._vendor.lm15.providers.base import HttpResponse
from dspy._vendor.lm15.result import acoalesce_stream, coalesce_stream
from dspy._vendor.lm15.sse import SSEEvent
from dspy._vendor.lm15.types import Usage as WireUsage
from dspy.adapters.types.base_type import CUSTOM_TYPE_END_IDENTIFIER as CUSTOM_TYPE_END
from dspy.adapters.types.base_type import CUSTOM_TYPE_START_IDENTIFIER as CUSTOM_TYPE_MARK
from dspy.adapters.utils import annotation_allows_none, get_annotation_name, parse_value
from dspy.clients._deprecation import adapter_message_call
from dspy.clients.backend_selection import select_backend
from dspy.clients.capabilities import resolve
from dspy.clients.legacy_outputs import value
from dspy.clients.model_metadata import model_info, rate
from dspy.streaming.messages import StatusStreamingCallback
from dspy.streaming.streaming_listener import find_predictor_for_stream_listeners as find_listened_predictors
from dspy.teleprompt.bootstrap_finetune import BootstrapFinetune
from dspy.teleprompt.infer_rules import InferRules
from dspy.teleprompt.simba import append_a_rule
from dspy.teleprompt.teleprompt import Teleprompter
from dspy.utils.callback import ACTIVE_CALL_ID, BaseCallback, with_callbacks
from dspy.utils.usage_tracker import UsageTracker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ClosedStream = (anyio.BrokenResourceError, anyio.ClosedResourceError)
"""What the stream of `dspy.streamify` raises if nobody reads it any more."""


@contextlib.contextmanager
def call_scope(call_id: str) -> Iterator[None]:
    """Make the call of this id the parent of DSPy's calls in this scope, also in its threads."""
    outer = ACTIVE_CALL_ID.get()
    ACTIVE_CALL_ID.set(call_id)
    try:
        yield
    finally:
        ACTIVE_CALL_ID.set(outer)


def providers_of(lm: dspy.BaseLM) -> tuple[Any, ...]:
    """Return the custom providers of an LM; empty if it has none."""
    return tuple(getattr(lm, "_providers", ()))


def is_routed(model: str, model_type: str, providers: tuple[Any, ...]) -> bool:
    """Return whether DSPy knows the provider of this model, without a request."""
    try:
        resolve(SimpleNamespace(model=model, model_type=model_type, _providers=providers))
    except Exception:  # noqa: BLE001 (DSPy and its providers raise many kinds)
        return False
    return True


def has_async_engine(lm: dspy.BaseLM) -> bool:
    """Return whether an LM with a custom engine also has an async one."""
    return getattr(lm, "_async_engine_spec", None) is not None


def input_names(example: dspy.Example) -> set[str] | None:
    """Return the names of an example's inputs; None if they are not set."""
    found: set[str] | None = getattr(example, "_input_keys", None)
    return found


def types_of_callers(signature: str) -> dict[str, Any]:
    """Return what the types in a string signature are in the scopes of the callers, by name."""
    found = dspy.Signature._detect_custom_types_from_caller(signature) or {}  # noqa: SLF001
    return {name: kind for name, kind in found.items() if not isinstance(kind, ModuleType)}  # `time` is one


def thaw(module: dspy.Module) -> None:
    """Unfreeze a compiled module, so that DSPy saves it with its program."""
    module._compiled = False  # noqa: SLF001


def thawing(program: dspy.Module) -> list[str]:
    """Return the lines of code that unfreeze the compiled modules in a program."""
    compiled = [n for n, module in program.named_sub_modules(dspy.Module) if getattr(module, "_compiled", False)]
    return [f"{name.replace('self', 'program', 1)}._compiled = False" for name in compiled if name != "self"]


def is_chunk(item: Any) -> bool:
    """Return whether an item that DSPy streams is a part of an LM's reply."""
    return bool(_streamify()._is_litellm_model_response_stream(item))  # noqa: SLF001


def replace_finder(find: Callable[..., Any]) -> None:
    """Let `dspy.streamify` find the predictors of its listeners with another function."""
    _streamify().find_predictor_for_stream_listeners = find


def load_partial_states(load: Callable[..., bool]) -> None:
    """Let a function load a state in which `dspy.Module.load_state` misses a predictor.

    Args:
        load: Takes what `load_state` takes; returns whether it loaded the state. If not, DSPy's error is raised.
    """
    load_state = dspy.Module.load_state

    @functools.wraps(load_state)
    def loaded(self: dspy.Module, state: Mapping[str, Any], **options: Any) -> None:
        try:
            load_state(self, state, **options)
        except KeyError:
            if not load(self, state, **options):
                raise

    dspy.Module.load_state = loaded


def _streamify() -> Any:
    """Return the module; DSPy gives its name to a function."""
    return sys.modules["dspy.streaming.streamify"]
