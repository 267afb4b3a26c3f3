"""Fifty clients at once for a minute: all are answered, nothing is left behind, and memory stays flat."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.by_hand
@pytest.mark.timeout(900)
def test_the_memory_of_a_server_stays_flat_under_fifty_clients() -> None:
    """The official client, some of them hanging up; the last half minute costs less than 20 MB."""
    command = [sys.executable, "experiment/bench/service.py", "--clients", "50", "--seconds", "60"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert set(found["requests"]) == {"answered", "hung up"}
    assert (found["left"], set(found["runs"])) == ("0.0", {"submitted", "cancelled"})
    megabytes = [size for _, size in found["memory"]]
    assert megabytes[-1] < megabytes[len(megabytes) // 2] + 20
