"""What gets out of the confinement, attack by attack, on each rung of the kernel ladder, as root and as anybody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from rlm_dspy.interpreters.confinement_policy import RUNGS
from tests import attacks
from tests.attacked import CANARY
from tests.further_attacks import FURTHER

ATTACKS = {**attacks.ATTACKS, **FURTHER}
HERE = Path(__file__).parents[1]
USERS = ["root", "ordinary"] if os.getuid() == 0 else ["ordinary"]
SEEING = {name for name in ATTACKS if name.startswith("see_")}
HELD_BY_THE_HOST = {"limits_memory", "limits_memory_of_orphans", "limits_memory_that_grows_as_a_stack"}
"""Whatever the layers, if it comes to look in time: at the memory of all processes together."""
OF_THE_HOST = {name for name in ATTACKS if name.startswith("secrets_")}

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the confinement is of Linux"),
    pytest.mark.timeout(300),
]


@cache
def outcomes(layers: str, user: str) -> dict[str, str]:
    """Run all attacks in a process of their own; return what stopped each: "" if it did harm."""
    done = subprocess.run(
        [sys.executable, str(HERE / "attacked.py"), layers, user],
        env={**os.environ, "RLM_CANARY": CANARY, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    results: dict[str, str] = json.loads(done.stdout)
    assert len(results) == 1 + (len(OF_THE_HOST) if layers == "local" else len(ATTACKS))
    assert results["control"] == "", results["control"]
    del results["control"]
    return results


def harmful(layers: str, user: str) -> set[str]:
    """Return the names of the attacks that did harm."""
    return {name for name, stopped_by in outcomes(layers, user).items() if not stopped_by}


def layers_of(rung: str) -> str:
    return "+".join(sorted(RUNGS[rung]))


def test_there_are_enough_attempts() -> None:
    """Of every class."""
    assert len(attacks.ATTACKS) >= 120
    assert len(FURTHER) >= 25


@pytest.mark.parametrize("user", USERS)
def test_no_attack_succeeds_with_all_layers(user: str) -> None:
    """Not one."""
    assert harmful(layers_of("all"), user) == set()


@pytest.mark.parametrize("user", USERS)
def test_without_namespaces_only_the_existence_of_files_is_seen(user: str) -> None:
    """Landlock does not hide names and sizes; `ConfinementPolicy(hidden_paths=True)` refuses this rung.

    Nor does it limit the number of files: `ConfinementPolicy(scratch_cap=True)` refuses it too.
    """
    assert harmful(layers_of("landlock"), user) <= SEEING | {"limits_files"}


@pytest.mark.parametrize("user", USERS)
def test_no_attack_succeeds_without_landlock(user: str) -> None:
    """Namespaces, the minimal root and the filter hold it alone."""
    assert harmful(layers_of("namespaces"), user) == set()


def test_each_attack_succeeds_where_its_layers_are_off() -> None:
    """So none of them is stopped by its own mistakes."""
    runs = [outcomes("none", user) for user in USERS]
    expected = set(ATTACKS) - OF_THE_HOST - HELD_BY_THE_HOST
    stopped_by = {name: [run[name] for run in runs] for name in sorted(expected) if all(run[name] for run in runs)}
    if "root" in USERS:
        assert stopped_by == {}
    else:
        assert len(stopped_by) < len(expected) * 0.3


@pytest.mark.parametrize("user", USERS[-1:])
def test_each_secret_is_found_by_code_that_runs_in_the_host(user: str) -> None:
    """The fork server is what keeps them from a worker, whatever its layers."""
    assert harmful("local", user) >= OF_THE_HOST
