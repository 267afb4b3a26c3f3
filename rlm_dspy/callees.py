"""Finds what a call from the REPL is for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy.callee import Callee
from rlm_dspy.errors import RLMError
from rlm_dspy.subs import Subs, interface_of

if TYPE_CHECKING:
    from rlm_dspy.rlm import RLM


class Callees:
    """What the code of one run may call.

    Args:
        rlm: The module that runs; only read.
        depth: How many runs are above this one.
    """

    def __init__(self, rlm: RLM, depth: int) -> None:
        self._rlm = rlm
        self._prefix = "child." if depth else ""
        self._known = {"query": self._callee("query", rlm.query, "query")}
        for name in rlm.subs.names():
            module = getattr(rlm.subs, name)
            self._known[name] = self._callee(name, module, "child" if isinstance(module, type(rlm)) else "sub")

    def find(self, to: dict[str, Any]) -> Callee:
        """Return what a call is for.

        Args:
            to: What the REPL sent; see `in_repl`.

        Raises:
            RLMError: If there is nothing of that name.
        """
        name = str(to.get("name") or to["kind"])
        if to["kind"] in ("query", "sub") and name in self._known:
            return self._known[name]
        raise RLMError(f"No sub-call named {name!r}; there are: {', '.join(sorted(self._known))}.")

    def _callee(self, name: str, module: dspy.Module, kind: Any, *, whole: bool = False, **given: Any) -> Callee:
        lm, act = self._rlm.sub_lm, self._rlm.act
        plain = isinstance(module, dspy.Predict) and lm is not None and (module.lm is None or module.lm is act.lm)
        return Callee(
            interface=interface_of(name, module, whole=whole),
            module=module,
            kind=kind,
            role=f"{self._prefix}{name}",
            reserves=kind != "child",
            reused=kind != "child",
            options={"lm": lm} if plain else {},
            **given,
        )


def for_repl(subs: Subs) -> list[dict[str, Any]]:
    """Return what the REPL must know of the subs to make functions of them."""
    known = []
    for name in subs.names():
        interface = interface_of(name, getattr(subs, name))
        fields = list(interface.inputs)
        known.append({"name": name, "fields": fields, "usage": interface.stub, "doc": interface.doc})
    return known
