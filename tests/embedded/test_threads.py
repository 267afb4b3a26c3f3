"""How many threads of llama.cpp compute, and what they do while they wait for one another."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from rlm_dspy.embedded import llama_server

if TYPE_CHECKING:
    from pathlib import Path

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="control groups, affinity and libgomp are Linux's")
LOAD = """
import os; before = dict(os.environ)
from rlm_dspy.embedded.engine import embedded_lm
embedded_lm("smollm2-135m", n_ctx=256, slots=1).engine.count_tokens("It is loaded.")
print(before == dict(os.environ))
"""


@pytest.fixture(autouse=True)
def _no_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RLM_DSPY_THREADS", raising=False)
    monkeypatch.setattr(llama_server, "_CPU_QUOTA", tmp_path / "cpu.max")


@LINUX
@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 2), (3, 2), (4, 2), (16, 8)])
def test_half_the_cores_compute_but_two_of_two(cores: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert llama_server.default_threads() == threads


@LINUX
@pytest.mark.parametrize(
    ("limit", "threads"), [("max 100000", 8), ("400000 100000", 2), ("150000 100000", 1), ("50000 100000", 1)]
)
def test_a_containers_share_of_the_cores_counts(
    limit: str, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    assert llama_server.default_threads() == threads


def test_the_user_may_name_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLM_DSPY_THREADS", "7")
    assert llama_server.default_threads() == 7


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_a_number_of_threads_that_is_none_is_named(number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLM_DSPY_THREADS", number)
    with pytest.raises(ValueError, match=f"RLM_DSPY_THREADS must be .* not '{number}'"):
        llama_server.default_threads()


@LINUX
@pytest.mark.usefixtures("smollm2")
@pytest.mark.parametrize(("users", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "active"}, "ACTIVE")])
def test_threads_that_wait_sleep_unless_the_user_chose(users: dict[str, str], policy: str) -> None:
    """The OpenMP runtime says what it was told; the process's environment is as it was."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD],
        env={**os.environ, "OMP_DISPLAY_ENV": "true", **users},
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert f"OMP_WAIT_POLICY = '{policy}'" in done.stderr
    assert done.stdout == "True\n"
