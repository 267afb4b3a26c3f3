"""Defines what the confinement guarantees, which layer enforces it, and which sets of layers to try."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

CHOICES = (
    "Choices: dspy.PythonInterpreter (WASM, needs Deno; slow but runs anywhere), a remote interpreter, "
    "rlm_dspy.interpreters.LocalPythonInterpreter for code that you trust, or a `confinement=` that does not "
    "require this."
)

RUNGS: Mapping[str, frozenset[str]] = {
    "all": frozenset({"uid", "namespaces", "landlock", "seccomp", "limits"}),
    "landlock": frozenset({"uid", "landlock", "seccomp", "limits"}),
    "namespaces": frozenset({"uid", "namespaces", "seccomp", "limits"}),
}
"""The ladder: sets of layers by name, best first. If none is sufficient, the interpreter refuses to run."""
LOWER_RUNGS: Mapping[str, frozenset[str]] = {
    "seccomp": frozenset({"uid", "seccomp", "limits"}),
    "limits": frozenset({"uid", "limits"}),
    "none": frozenset(),
}
"""What else to try in a container or a sandbox, which the user trusts to hold what they lack."""


@dataclass(frozen=True, kw_only=True)
class ConfinementPolicy:
    """The guarantees for the model's code. True: required; the interpreter refuses to start without it.

    False does not disable anything: the best available set of layers is always used.
    """

    no_network: bool = True
    """No TCP, UDP, raw or other sockets, and no sockets with a path or an abstract name."""
    only_given_files: bool = True
    """It can read only Python, its libraries and the named paths, and write only to its scratch folder."""
    hidden_paths: bool = False
    """It cannot even see names, sizes and owners of other files."""
    clean_environment: bool = True
    """It never shared memory, variables or descriptors with the host process."""
    no_exec: bool = True
    """It starts no other program."""
    private_runs: bool = True
    """It does not reach the values, files, processes and callbacks of another run."""
    memory_cap: bool = True
    """The memory of its processes is limited."""
    process_cap: bool = True
    """The number of processes and threads is limited."""
    scratch_cap: bool = False
    """The bytes and files in its scratch folder are limited."""
    layers: frozenset[str] | None = None
    """The layers to use; None for all available ones. For tests of what each layer stops."""

    def required(self) -> tuple[str, ...]:
        """Return the names of the required guarantees."""
        return tuple(item.name for item in fields(self) if item.name != "layers" and getattr(self, item.name))

    def rungs(self) -> dict[str, frozenset[str]]:
        """Return the sets of layers to try, best first."""
        return dict(RUNGS) if self.layers is None else {"chosen": self.layers}


_HELD_BY: Mapping[str, tuple[frozenset[str], ...]] = {
    "no_network": (frozenset({"seccomp"}),),
    "only_given_files": (frozenset({"namespaces", "seccomp"}), frozenset({"landlock", "seccomp"})),
    "hidden_paths": (frozenset({"namespaces"}),),
    "clean_environment": (frozenset(),),
    "no_exec": (frozenset({"seccomp"}),),
    "private_runs": (frozenset({"namespaces", "seccomp"}), frozenset({"landlock", "seccomp"})),
    "memory_cap": (frozenset({"limits", "seccomp"}),),
    "process_cap": (frozenset({"limits", "namespaces"}), frozenset({"limits", "uid"})),
    "scratch_cap": (frozenset({"namespaces"}),),
}
GUARANTEES = tuple(_HELD_BY)


def held(layers: frozenset[str], trusts: frozenset[str] = frozenset()) -> dict[str, str]:
    """Return the guarantees that `layers` enforce, each with the layers that enforce it, and those of `trusts`."""
    found = {}
    for name, options in _HELD_BY.items():
        fitting = [option for option in options if option <= layers]
        if fitting:
            found[name] = " + ".join(sorted(fitting[0])) or "fork server"
        elif name in trusts:
            found[name] = "trusted"
    return found


def missing(policy: ConfinementPolicy, layers: frozenset[str], trusts: frozenset[str] = frozenset()) -> list[str]:
    """Return the guarantees that `policy` requires, and that neither `layers` enforce nor the user trusts in."""
    holding = held(layers, trusts)
    return [name for name in policy.required() if name not in holding]


def unsupported() -> str:
    """Return why this system cannot run a confined worker at all; empty if it can."""
    if sys.platform != "linux":
        return f"a confined worker needs Linux, and this is {sys.platform}"
    if sys.implementation.name != "cpython":
        return f"a confined worker needs CPython, and this is {sys.implementation.name}"
    return ""
