"""Resolves a call from the REPL to its callee: a query, a child RLM, a sub or an ad hoc module."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy.errors import InvalidInputs, RLMError
from rlm_dspy.repl.tools import GuardedTool
from rlm_dspy.subcalls.ad_hoc import module_from, signature_from, written
from rlm_dspy.subcalls.child import QUERY, ChildQuery, check_depth
from rlm_dspy.subcalls.interface import Interface, Subs, interface_of
from rlm_dspy.subcalls.target import Callee

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_dspy.subcalls.frames import AdHocFrame, Target
    from rlm_dspy.subcalls.interface import Program
    from rlm_dspy.trajectory import CallKind

_MOST_WRITTEN = 64
"""So many modules that were written in the REPL are kept for their next call."""


class Callees:
    """Finds the callees of one run's code by name.

    Args:
        rlm: The module that runs; only read.
        depth: How many runs are above this one.
        make_child: Makes a child RLM for a signature and, if it is given, a number of turns.
        tools: The tools by name as a ReAct calls them, in threads; by default the module's own.
    """

    def __init__(
        self,
        rlm: Program,
        depth: int,
        make_child: Callable[..., dspy.Module],
        tools: dict[str, dspy.Tool] | None = None,
    ) -> None:
        self._rlm = rlm
        self._depth = depth
        self._tools = rlm.tools if tools is None else tools
        self._prefix = "child." if depth else ""
        self._make_child = make_child
        self._lock = threading.Lock()
        self._known = {"query": self._callee(interface_of("query", rlm.query), rlm.query, "query")}
        for name in rlm.subs.names():
            module = getattr(rlm.subs, name)
            kind: CallKind = "child" if isinstance(module, type(rlm)) else "sub"
            self._known[name] = self._callee(interface_of(name, module), module, kind)
        self._written: dict[str, Callee] = {}

    def find(self, to: Target) -> Callee:
        """Return the callee of a call.

        Args:
            to: What the REPL names; see `frames`.

        Raises:
            RLMError: If there is nothing of that name, no child may be made, or a signature cannot be read.
        """
        child = to.kind == "rlm_query" or (to.kind == "ad_hoc" and to.module == "RLM")
        if child:
            check_depth(self._depth, self._rlm.limits.max_depth)
        if to.kind == "rlm_query":
            return self._callee(QUERY, ChildQuery(self._make_child), "child", role="rlm")
        if to.kind == "ad_hoc":
            return self._kept(to)
        name = to.name if to.kind == "sub" else to.kind
        if name not in self._known:
            raise RLMError(f"No sub-call named {name!r}; there are: {', '.join(sorted(self._known))}.")
        return self._known[name]

    def _kept(self, to: AdHocFrame) -> Callee:
        """Return the callee of a module that was written in the REPL; the last ones are kept."""
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
        if unknown := [tool for tool in to.tools if tool not in self._tools]:
            raise InvalidInputs(f"No tool named {', '.join(unknown)}; there are: {', '.join(self._tools)}.")
        if to.module == "RLM":
            child = self._make_child(made_of, **options)
            return self._callee(interface_of(name, child, whole=True), child, "child", role="rlm")
        made = module_from(to.module, made_of, options, [GuardedTool.of(self._tools[tool]) for tool in to.tools])
        if self._rlm.sub_lm is None and self._rlm.query.lm is not None:
            made.set_lm(self._rlm.query.lm)
        interface = interface_of(name, made, whole=True)
        return self._callee(interface, made, "ad_hoc", role="ad_hoc", reused=to.module != "ReAct")

    def _callee(
        self, interface: Interface, module: dspy.Module, kind: CallKind, *, role: str = "", reused: bool = True
    ) -> Callee:
        lm, act = self._rlm.sub_lm, self._rlm.act
        plain = isinstance(module, dspy.Predict) and lm is not None and (module.lm is None or module.lm is act.lm)
        return Callee(
            interface=interface,
            module=module,
            kind=kind,
            role=f"{self._prefix}{role or interface.name}",
            reserves=kind != "child",
            reused=reused and kind != "child",
            options={"lm": lm} if plain else {},
        )


def for_repl(subs: Subs) -> list[dict[str, Any]]:
    """Return what the REPL must know of the subs to make functions of them."""
    known = []
    for name in subs.names():
        interface = interface_of(name, getattr(subs, name))
        fields = list(interface.inputs)
        doc = " ".join(filter(None, (interface.doc, interface.types)))
        known.append({"name": name, "fields": fields, "usage": interface.stub, "doc": doc})
    return known
