"""The doctor says what holds, here and where a layer is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlm_dspy.interpreters.confinement_policy import GUARANTEES, RUNGS, ConfinementPolicy, held, missing
from rlm_dspy.interpreters.diagnosis import doctor, probe, render

HERE = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the confinement is of Linux")

WITHOUT = """
import struct, sys
from tests.attacked import become_ordinary, open_python
from rlm_dspy.interpreters.confinement import seccomp, syscalls
import os
if os.getuid() == 0:
    open_python()
    if sys.argv[1] == "ordinary": become_ordinary()
from rlm_dspy.interpreters.confinement import kernel
column = 0 if os.uname().machine == "x86_64" else 1
denied = {"namespaces": [(272, 97)[column]], "landlock": [444, 445, 446]}
code = [(0x20, 0, 0, 0)]
for layer in sys.argv[2:]:
    for number in denied[layer]: code += [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050001)]
seccomp.install(b"".join(struct.pack("<HBBI", *part) for part in [*code, (0x06, 0, 0, 0x7fff0000)]))
from rlm_dspy.interpreters.diagnosis import doctor, render
found = doctor()
print("chosen", found.chosen or "none")
print(render(found))
"""


def test_all_layers_hold_here_or_it_says_why() -> None:
    """Each rung either works or has its reason; the guarantees follow from the one that is used."""
    found = doctor()
    assert [rung.name for rung in found.rungs] == list(RUNGS)
    assert all(rung.failure or set(ConfinementPolicy().required()) <= set(rung.holds) for rung in found.rungs)
    assert set(found.guarantees) == set(GUARANTEES)
    assert found.chosen in render(found)
    if found.chosen:
        assert all(found.guarantees[name] for name in ConfinementPolicy().required())


def test_probe_names_the_layers_that_hold_a_guarantee() -> None:
    """And nothing for what does not hold."""
    found = probe(ConfinementPolicy(**dict.fromkeys(GUARANTEES, False), layers=frozenset({"seccomp"})))
    assert found["no_network"] == "seccomp"
    assert found["memory_cap"] == ""


@pytest.mark.parametrize("user", ["root", "ordinary"] if os.getuid() == 0 else ["ordinary"])
@pytest.mark.parametrize(
    ("denied", "chosen"),
    [(["namespaces"], "landlock"), (["landlock"], "namespaces"), (["namespaces", "landlock"], "none")],
)
def test_where_the_kernel_denies_a_layer_the_next_rung_is_used(user: str, denied: list[str], chosen: str) -> None:
    """Really denied, by a filter on this process; with none left it refuses and gives the choices."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, user, *denied],
        env={**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.stdout.startswith(f"chosen {chosen}\n"), done.stdout + done.stderr
    assert ("Choices:" in done.stdout) == (chosen == "none")
    assert "Operation not permitted" in done.stdout


def test_a_policy_requires_what_it_names() -> None:
    """And only layers that hold it satisfy it."""
    assert missing(ConfinementPolicy(), frozenset()) == [
        name for name in ConfinementPolicy().required() if name != "clean_environment"
    ]
    assert missing(ConfinementPolicy(hidden_paths=True), RUNGS["landlock"]) == ["hidden_paths"]
    assert missing(ConfinementPolicy(), frozenset({"landlock", "seccomp", "limits"})) == ["process_cap"]
    assert all(missing(ConfinementPolicy(), layers) == [] for layers in RUNGS.values())
    assert held(RUNGS["all"])["hidden_paths"] == "namespaces"
