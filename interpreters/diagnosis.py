"""Tests which confinement layers this system supports, for `rlm-dspy doctor`."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

from rlm_dspy.interpreters.confinement import landlock
from rlm_dspy.interpreters.confinement.limits import WorkerLimits
from rlm_dspy.interpreters.confinement_policy import (
    CHOICES,
    GUARANTEES,
    ConfinementPolicy,
    held,
    missing,
    unsupported,
)
from rlm_dspy.interpreters.host.fork_server_client import ForkServer, Recipe, recipe
from rlm_dspy.interpreters.host.worker_group import Group


@dataclass(frozen=True)
class Rung:
    """A set of layers, and whether a worker ran with it."""

    name: str
    layers: tuple[str, ...]
    failure: str
    """Why it cannot be used here; empty if it works."""
    holds: dict[str, str] = field(default_factory=dict)
    """Its guarantees, with the layers that enforce them."""


@dataclass(frozen=True)
class Diagnosis:
    """The result of `doctor`.

    Attributes:
        system: Kernel, machine, Python and user, as text.
        rungs: The sets of layers that were tried, best first.
        chosen: Name of the rung that `PythonInterpreter()` uses; empty if it refuses to run.
        zero_copy: Whether values are attached without a copy.
        landlock: The kernel's Landlock version; 0 without.
        readable: The files and folders that code can read there; in Python's folders without installed packages.
    """

    system: dict[str, str]
    rungs: tuple[Rung, ...]
    chosen: str
    zero_copy: bool
    landlock: int
    readable: tuple[str, ...]

    def __str__(self) -> str:
        return render(self)

    @property
    def guarantees(self) -> dict[str, str]:
        """Each guarantee on the chosen rung with the layers that enforce it; "" if none does."""
        used = next((rung for rung in self.rungs if rung.name == self.chosen), None)
        return {name: used.holds.get(name, "") if used else "" for name in GUARANTEES}


def diagnose(made: Recipe) -> Diagnosis:
    """Try to run a worker on every set of layers, and return the results.

    Args:
        made: What the fork server is made from.
    """
    reason = unsupported()
    rungs, zero_copy = [], False
    for name, layers in made.rungs().items():
        attaches, failure = (False, reason) if reason else _try(layers)
        zero_copy = zero_copy or attaches
        rungs.append(Rung(name, tuple(sorted(layers)), failure, {} if failure else held(layers, made.trusts)))
    usable = [
        rung
        for rung in rungs
        if not rung.failure and not missing(made.confinement, frozenset(rung.layers), made.trusts)
    ]
    version, readable = 0 if reason else landlock.version(), list[str]()
    if usable:
        with closing(ForkServer(made, frozenset(usable[0].layers))) as server:
            readable = server.readable
    return Diagnosis(
        _system(), tuple(rungs), usable[0].name if usable else "", zero_copy, version, tuple(readable)
    )


def _try(layers: frozenset[str]) -> tuple[bool, str]:
    """Start a worker with these layers; return whether it attaches without a copy, and why it failed."""
    try:
        with closing(ForkServer(Recipe((), (), ConfinementPolicy()), layers)) as server, ExitStack() as left:
            group = Group(server, WorkerLimits(), server.new_scratch())
            left.callback(group.leave)
            group.start_worker(1_000).close()
    except OSError as error:
        return False, str(error)
    return server.zero_copy, ""


def _system() -> dict[str, str]:
    user = "unknown" if sys.platform == "win32" else "root" if os.getuid() == 0 else f"user {os.getuid()}"
    return {
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "user": user,
    }


def doctor(confinement: ConfinementPolicy | None = None) -> Diagnosis:
    """Try to run a worker on every set of layers here, and return the results.

    Args:
        confinement: The required guarantees; None for the default `ConfinementPolicy`.
    """
    return diagnose(recipe(confinement=confinement))


def probe(confinement: ConfinementPolicy | None = None) -> dict[str, str]:
    """Return each guarantee with the layers that enforce it here; "" if none does.

    Args:
        confinement: The policy to try; None for the default `ConfinementPolicy`.
    """
    return doctor(confinement).guarantees


def render(diagnosis: Diagnosis) -> str:
    """Return the diagnosis as text for a terminal."""
    landlock_version = f"version {diagnosis.landlock}" if diagnosis.landlock else "missing"
    lines = [f"{name}: {value}" for name, value in diagnosis.system.items()]
    lines += [f"landlock: {landlock_version}", "", "Layers:"]
    for rung in diagnosis.rungs:
        mark = "used" if rung.name == diagnosis.chosen else "no" if rung.failure else "works"
        lines.append(f"  {mark:5} {rung.name}: {' + '.join(rung.layers) or 'none'}")
        lines += [f"        {rung.failure}"] if rung.failure else []
    lines += ["", "Guarantees:"]
    for name, layers in diagnosis.guarantees.items():
        mark, by = ("holds", f" ({layers})") if layers else ("NO", "")
        lines.append(f"  {mark:5} {name.replace('_', ' ')}{by}")
    how = "attached without a copy" if diagnosis.zero_copy else "copied once into each worker"
    lines += ["", f"Values are {how}."]
    if diagnosis.readable:
        lines += ["", "Code can read, beside its own scratch folder:"]
    by_folder = groupby(sorted(map(os.path.split, diagnosis.readable)), key=itemgetter(0))
    lines += [f"  {folder}: {', '.join(name for _, name in paths)}" for folder, paths in by_folder]
    if not diagnosis.chosen:
        lines += ["PythonInterpreter does not run here with the default policy.", CHOICES]
    return "\n".join(lines)
