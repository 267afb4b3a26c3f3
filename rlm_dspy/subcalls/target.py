"""Defines `Callee`, the module behind a sub-call, and the retry note after an answer that did not parse."""

from __future__ import annotations

import contextlib
import copy
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import dspy

from rlm_dspy.cache.sub_call_cache import digest
from rlm_dspy.errors import Unanswered
from rlm_dspy.redaction import without_secrets
from rlm_dspy.subcalls.interface import signature_of
from rlm_dspy.text import clip

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rlm_dspy.coverage.tracker import Watch
    from rlm_dspy.subcalls.interface import Interface
    from rlm_dspy.trajectory import CallKind, Step

ATTEMPTS = 3
"""How often a model is asked until its answer can be read into the types."""
_COMPLAINT_CHARS = 600


@dataclass(frozen=True)
class Callee:
    """The module that a sub-call calls, with its interface.

    Attributes:
        interface: Its name, and what it takes and gives.
        module: What runs on the host.
        kind: See `SubCall.kind`.
        role: Under which its model calls are entered into the ledger.
        attempts: How often it is asked until its answer can be read.
        reserves: Whether each attempt takes one of the run's model calls. A child takes them turn by turn.
        reused: Whether an earlier answer may stand for it: not where tools may act or a child would run.
        options: What else the module is called with: `lm`, for a predictor that has none of its own.
    """

    interface: Interface
    module: dspy.Module
    kind: CallKind
    role: str
    attempts: int = ATTEMPTS
    reserves: bool = True
    reused: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    _states: dict[tuple[int, str], str] = field(default_factory=dict, repr=False)

    @property
    def lms(self) -> list[Any]:
        """The LMs that may be asked: that of this scope, one of the call's own, those of the predictors."""
        own = [predictor.lm for _, predictor in self.module.named_predictors()]
        return [lm for lm in (dspy.settings.lm, self.options.get("lm"), *own) if lm is not None]

    def read(self, result: dspy.Prediction) -> Any:
        """Return what the module gave, with the constraints of its outputs applied; a child has applied its own.

        Raises:
            dspy.AdapterParseError: If a value does not fit, as if it could not be read: it is asked for again.
        """
        if self.kind == "child":
            return result
        try:
            return self.interface.constrained(result)
        except ValueError as error:
            adapter, said = type(dspy.settings.adapter or dspy.ChatAdapter()).__name__, repr(dict(result.items()))
            raise dspy.AdapterParseError(
                adapter, signature_of(self.module), clip(said, _COMPLAINT_CHARS), str(error)
            ) from None

    def state(self, lm: dspy.BaseLM | None) -> str:
        """Return a digest of all that its answers depend on besides the inputs, if called with this LM.

        It is made once for each LM: a run does not change what it calls.
        """
        asked, adapter = lm or dspy.settings.lm, type(dspy.settings.adapter or dspy.ChatAdapter()).__name__
        key = (id(asked), adapter)
        if key not in self._states:
            self._states[key] = self._digest(asked, adapter)
        return self._states[key]

    def _digest(self, lm: dspy.BaseLM | None, adapter: str) -> str:
        predictors = {name: _learned(predictor) for name, predictor in self.module.named_predictors()}
        kind = f"{type(self.module).__module__}.{type(self.module).__qualname__}"
        own = getattr(self.module, "config", {})
        told = [self.interface.stub, self.interface.schemas]
        return digest(kind, told, predictors, own, adapter, _lm_state(lm))


def _learned(predictor: dspy.Predict) -> list[Any]:
    demos = [dict(demo) for demo in predictor.demos]
    return [predictor.signature.dump_state(), demos, predictor.config, _lm_state(predictor.lm)]


def _lm_state(lm: dspy.BaseLM | None) -> list[Any]:
    """Return what an LM's answers depend on: its name and its options, but for keys and headers."""
    kwargs = getattr(lm, "kwargs", None)
    return [getattr(lm, "model", None), without_secrets(kwargs) if kwargs else {}]


class ActiveRun(Protocol):
    """The run that made a sub-call, as sub-calls see it; `Run` is one."""

    lm: dspy.BaseLM
    watch: Watch | None
    depth: int


@dataclass
class ActiveSubCall:
    """A sub-call under way, as an RLM that runs inside it finds it.

    Attributes:
        run: The run that made the sub-call: the parent of what runs inside.
        steps: The steps of the runs inside that have ended.
        stop: How the last run inside ended, as in `Prediction.stop`.
        final_reasoning: Its last words; of one that ended unanswered, why it did.
    """

    run: ActiveRun
    steps: list[Step] = field(default_factory=list)
    stop: str = ""
    final_reasoning: str = ""

    def check(self, result: dspy.Prediction, *, is_child: bool) -> None:
        """Check that the sub-call did not end with a run inside that gave no answer.

        Args:
            result: What the module gave.
            is_child: Whether the module is an RLM. Another module may go on without the answer of a run inside
                it; one that returns the prediction of that run did not.

        Raises:
            Unanswered: If it did; the message says why the run ended and what to do.
        """
        handed_on = isinstance(result, dspy.Prediction) and result.get("stop") == "unanswered"
        if self.stop == "unanswered" and (is_child or handed_on):
            raise Unanswered(
                f"The child ended without an answer. {self.final_reasoning} Give it a smaller part or a simpler "
                "task, or go on with plain Python."
            )


active_sub_call: ContextVar[ActiveSubCall | None] = ContextVar("active_sub_call", default=None)
"""The sub-call that runs in this context; None outside of sub-calls, and in the tools of a run."""


@contextlib.contextmanager
def retrying_after(error: dspy.AdapterParseError) -> Iterator[None]:
    """Add the error of the last answer to the messages that are sent in this scope."""
    adapter = dspy.settings.adapter or dspy.ChatAdapter()
    again = copy.copy(adapter)
    complaint = clip(str(error.message if hasattr(error, "message") else error), _COMPLAINT_CHARS)
    note = f"\n\nYour last answer could not be read: {complaint}\nAnswer again, in exactly the form asked for."

    def formatted(
        signature: type[dspy.Signature], demos: list[dict[str, Any]], inputs: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = adapter.format(signature, demos, inputs)
        last = messages[-1]
        content = last["content"]
        longer = [*content, {"type": "text", "text": note}] if isinstance(content, list) else f"{content}{note}"
        return [*messages[:-1], {**last, "content": longer}]

    again.format = formatted
    with dspy.context(adapter=again):
        yield
