"""Resolves the callee of a sub-call, once per run: a query, a child RLM, a sub or an ad hoc module."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy.cache.sub_call_cache import digest
from rlm_dspy.concurrency.async_forms import must_be_awaited
from rlm_dspy.errors import InvalidInputs, LimitExceeded, RLMError, Unanswered
from rlm_dspy.redaction import lm_state
from rlm_dspy.repl.coercion import read_value
from rlm_dspy.repl.tools import GuardedTool
from rlm_dspy.repl.value_codec import sent
from rlm_dspy.subcalls.ad_hoc import signature_from, written
from rlm_dspy.subcalls.child import LLM_QUERY, RLM_QUERY, ChildQuery
from rlm_dspy.subcalls.frames import AGENTS
from rlm_dspy.subcalls.interface import Interface, Subs, interface_of, signature_of
from rlm_dspy.text import clip

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import JsonValue
    from typing_extensions import TypeForm

    from rlm_dspy.subcalls.frames import AdHocFrame, Target
    from rlm_dspy.subcalls.interface import Program
    from rlm_dspy.trajectory import CallKind

_COMPLAINT_CHARS = 600
_MOST_WRITTEN = 64
"""Number of modules written in the REPL that are kept for their next call."""
_MODULES: dict[str, Callable[..., dspy.Module]] = {
    "Predict": dspy.Predict,
    "ChainOfThought": dspy.ChainOfThought,
    "ReAct": dspy.ReAct,
    "ReActV2": dspy.ReActV2,
}


@dataclass(frozen=True)
class Callee:
    """The module of a sub-call, and everything needed to call it.

    Attributes:
        interface: Its name, inputs and outputs.
        module: The module that runs on the host.
        kind: See `SubCall.kind`.
        role: The role of its model calls in the ledger.
        reused: Whether an earlier answer may be reused: not with tools or children.
        must_be_awaited: Whether the module has only an async form.
        options: Further arguments of the module: `lm`, for a predictor without its own.
        cheap_lm: The LM that is asked first; None for the usual one.
    """

    interface: Interface
    module: dspy.Module
    kind: CallKind
    role: str
    reused: bool = True
    must_be_awaited: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    cheap_lm: dspy.BaseLM | None = None
    _states: dict[tuple[int, str], str] = field(default_factory=dict, repr=False)

    @property
    def lms(self) -> list[Any]:
        """The LMs that may be called: of this scope, of the call, of the predictors."""
        own = [predictor.lm for _, predictor in self.module.named_predictors()]
        return [lm for lm in (dspy.settings.lm, self.options.get("lm"), self.cheap_lm, *own) if lm is not None]

    def answer(self, result: object) -> JsonValue:
        """Return the module's result, encoded for the REPL. A child has applied its constraints itself.

        Raises:
            dspy.AdapterParseError: If a value does not fit, so that the call is retried.
            Unanswered: If an output that cannot be None has no value.
        """
        if isinstance(result, dspy.Prediction) and self.kind != "child" and self.interface.constrained:
            result = self._read(result)
        return sent(self.value_of(result))

    def _read(self, result: dspy.Prediction) -> dspy.Prediction:
        """Apply the constraints of the outputs to the result: DSPy checks only types."""
        fields, problems = dict(result.items()), []
        for name, kind in self.interface.constrained.items():
            try:
                fields[name] = None if fields.get(name) is None else read_value(fields[name], kind)
            except ValueError as error:
                problems.append(f"{name}: {error}")
        if problems:
            adapter, said = type(dspy.settings.adapter or dspy.ChatAdapter()).__name__, repr(dict(result.items()))
            raise dspy.AdapterParseError(
                adapter, signature_of(self.module), clip(said, _COMPLAINT_CHARS), "; ".join(problems)
            )
        return dspy.Prediction(fields)

    def value_of(self, result: Any) -> Any:
        """Return a result for code: the single output, or a record of several.

        Raises:
            Unanswered: If an output that cannot be None has no value.
        """
        outputs = self.interface.outputs
        if not isinstance(result, dspy.Prediction) and (result is not None or not outputs):
            return result
        fields = dict(result.items()) if result is not None else {}
        if outputs is not None:
            fields = {name: fields.get(name) for name in outputs}
            empty = [name for name, value in fields.items() if value is None]
            if missing := [name for name in empty if not _fits_none(outputs[name])]:
                name = self.interface.name
                raise Unanswered(f"{name} returned no value for {', '.join(missing)}. Ask for less at a time.")
        if len(fields) == 1 and not self.interface.whole:
            return next(iter(fields.values()))
        return dspy.Prediction(fields)  # by keyword, a field named `base` would be taken for a record to copy

    def state(self, lm: dspy.BaseLM | None) -> str:
        """Return a digest of everything but the inputs that its answers depend on, if called with this LM.

        It is computed once per LM: a run does not change its callees.
        """
        asked, adapter = lm or dspy.settings.lm, type(dspy.settings.adapter or dspy.ChatAdapter()).__name__
        key = (id(asked), adapter)
        if key not in self._states:
            learned = {name: _learned(predictor) for name, predictor in self.module.named_predictors()}
            kind = f"{type(self.module).__module__}.{type(self.module).__qualname__}"
            interface = [self.interface.stub, self.interface.schemas]
            own = getattr(self.module, "config", {})
            cheap = [lm_state(self.cheap_lm)] if self.cheap_lm else []
            self._states[key] = digest(kind, interface, learned, own, adapter, lm_state(asked), *cheap)
        return self._states[key]


def _fits_none(kind: TypeForm[Any]) -> bool:
    try:
        read_value(None, kind)
    except ValueError:
        return False
    return True


def _learned(predictor: dspy.Predict) -> list[Any]:
    demos = [dict(demo) for demo in predictor.demos]
    per_run = getattr(predictor, "demos_per_run", None)
    return [predictor.signature.dump_state(), demos, per_run, predictor.config, lm_state(predictor.lm)]


@dataclass(eq=False)
class Callees:
    """Finds the callees of one run's code by name, at their first call.

    Args:
        rlm: The running module; only read.
        depth: The number of runs above this one.
        make_child: Returns a child RLM for a signature and an optional number of turns.
        in_thread: Wraps a tool for a ReAct in a thread; None leaves it unchanged.
    """

    rlm: Program
    depth: int
    make_child: Callable[..., dspy.Module]
    in_thread: Callable[[dspy.Tool], dspy.Tool] | None = None
    _named: dict[str, Callee] = field(default_factory=dict)
    _written: dict[str, Callee] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def lm(self) -> dspy.BaseLM | None:
        """The LM of sub-calls without their own; None for the configured one, if any."""
        if self.rlm.sub_lm is not None or dspy.settings.lm is not None:
            return self.rlm.sub_lm
        own: dspy.BaseLM | None = self.rlm.query.lm or self.rlm.act.lm
        return own

    def find(self, to: Target) -> Callee:
        """Return the callee of a call.

        Args:
            to: The callee in the frame; see `frames`.

        Raises:
            RLMError: If the name is unknown, no child may be created, or a signature is invalid.
        """
        max_depth = self.rlm.limits.max_depth
        if self.depth >= max_depth and (to.kind == "rlm_query" or (to.kind == "ad_hoc" and to.module == "RLM")):
            raise LimitExceeded(
                f"Cannot create a child RLM: max_depth={max_depth} is reached. Use llm_query(prompt) on a piece, "
                "or continue with plain Python."
            )
        if to.kind == "rlm_query":
            return self._callee(RLM_QUERY, ChildQuery(self.make_child), "child", role="rlm")
        if to.kind == "ad_hoc":
            return self._kept(to)
        name = to.name if to.kind == "sub" else "query"
        if name not in self._named:
            self._named[name] = self._of_name(name)
        return self._named[name]

    def _of_name(self, name: str) -> Callee:
        if name == "query":
            return self._callee(LLM_QUERY, self.rlm.query, "query")
        subs = self.rlm.subs
        if name not in subs.names():
            known = ", ".join(sorted(["query", *subs.names()]))
            raise RLMError(f"Unknown sub-call {name!r}; the sub-calls are: {known}.")
        module = getattr(subs, name)
        kind: CallKind = "child" if isinstance(module, type(self.rlm)) else "sub"
        return self._callee(interface_of(name, module), module, kind)

    def _kept(self, to: AdHocFrame) -> Callee:
        """Return the callee of a module written in the REPL; recent ones are kept."""
        key = to.model_dump_json()
        with self._lock:
            if key not in self._written:
                while len(self._written) >= _MOST_WRITTEN:
                    del self._written[next(iter(self._written))]
                self._written[key] = self._ad_hoc(to)
            return self._written[key]

    def _ad_hoc(self, to: AdHocFrame) -> Callee:
        made_of, options = signature_from(to.signature), to.options()
        name = f"{to.module}({written(made_of)!r})"
        known, in_thread = self.rlm.tools, self.in_thread or (lambda tool: tool)
        if unknown := [tool for tool in to.tools if tool not in known]:
            raise InvalidInputs(f"Unknown tool {', '.join(unknown)}; the tools are: {', '.join(known)}.")
        if to.module == "RLM":
            child = self.make_child(made_of, **options)
            return self._callee(interface_of(name, child, whole=True), child, "child", role="rlm")
        if to.module in AGENTS:
            options["tools"] = [GuardedTool.of(in_thread(known[name])) for name in to.tools]
        try:
            made: dspy.Module = _MODULES[to.module](made_of, **options)
        except ValueError as error:  # a name that the module keeps for itself
            raise InvalidInputs(f"dspy.{to.module}: {error}") from None
        if self.rlm.sub_lm is None and self.rlm.query.lm is not None:
            made.set_lm(self.rlm.query.lm)
        interface = interface_of(name, made, whole=True)
        return self._callee(interface, made, "ad_hoc", role="ad_hoc", reused=to.module not in AGENTS)

    def _callee(
        self, interface: Interface, module: dspy.Module, kind: CallKind, *, role: str = "", reused: bool = True
    ) -> Callee:
        lm, act = self.rlm.sub_lm, self.rlm.act
        plain = isinstance(module, dspy.Predict) and lm is not None and (module.lm is None or module.lm is act.lm)
        takes_cheap = isinstance(module, dspy.Predict) and module.lm is None
        return Callee(
            interface=interface,
            module=module,
            kind=kind,
            role=f"{'child.' if self.depth else ''}{role or interface.name}",
            reused=reused and kind != "child",
            must_be_awaited=not isinstance(module, dspy.Predict) and must_be_awaited(module),
            options={"lm": lm} if plain else {},
            cheap_lm=self.rlm.compute.cheap_lm if takes_cheap else None,
        )


def for_repl(subs: Subs) -> list[dict[str, Any]]:
    """Return the facts from which the REPL makes functions of the subs."""
    known = []
    for name in subs.names():
        interface = interface_of(name, getattr(subs, name))
        doc = " ".join(filter(None, (interface.doc, interface.types)))
        known.append({"name": name, "fields": list(interface.inputs), "usage": interface.stub, "doc": doc})
    return known
