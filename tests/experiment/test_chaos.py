"""Runs in which things go wrong: each ends with an answer or a typed error, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).parents[2] / "experiment" / "bench" / "chaos.py"

WITHOUT_DESCRIPTORS = """
import os, resource
import dspy
from rlm_dspy import RLM
from rlm_dspy.interpreters import PythonInterpreter
from rlm_dspy.testing import ScriptedLM

rlm = RLM("context -> answer", interpreter_factory=lambda: PythonInterpreter(packages=()))
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
with dspy.context(lm=ScriptedLM(lambda _: "```python\\nSUBMIT(answer='a')\\n```")):
    assert rlm(context="x").answer == "a"
    taken = len(os.listdir("/proc/self/fd"))
    for free in range(16):
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken + free, limits[1]))
        try:
            print(rlm(context="x").answer)
        except dspy.CodeInterpreterError as error:
            print(type(error).__name__, len(vars(error)["trajectory"]), "steps")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
"""
"""In a process of its own, whose descriptors have no gaps."""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="the confinement is of Linux")
def test_twelve_runs_with_mixed_faults_end_as_documented_and_leave_nothing() -> None:
    """The first of the 500 that `chaos.py` does."""
    command = [sys.executable, str(CHAOS), "--runs", "12", "--seed", "1", "--workers", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the confinement is of Linux")
def test_a_process_without_free_descriptors_is_told_so_by_a_documented_error() -> None:
    """However far a run comes before it needs another one."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_DESCRIPTORS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert first != "a"
    assert last == "a"
