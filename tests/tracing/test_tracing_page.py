"""A run in MLflow's page, in a real browser: what a person sees of it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with what can be read on each page; the script of the screenshots goes through them."""
    if BROWSER is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("no playwright in this environment: pip install playwright")
    folder = tmp_path_factory.mktemp("pages")
    command = [
        sys.executable,
        "experiment/bench/trace_screenshots.py",
        "--browser",
        BROWSER,
        "--folder",
        str(folder),
    ]
    others = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment = {**others, "PYTHONPATH": str(ROOT)}  # MLflow leaves the experiments of other tests there
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


SEEN = {
    "trace-list": [
        "Which trend do the articles of 2025 agree on",
        "answer: Small models take over routine work.",
        "a mornin",
    ],
    "trace": [
        "turn 2: error",
        "turn 6: SUBMIT refused",
        "turn 7: SUBMIT",
        "llm_query ×11",
        "rlm_query",
        "submitted after 7 turns; 2 turns failed, 13 sub-calls, 21 model calls",
        "report.html",
        "trajectory.json",
    ],
    "trace-error": ["error in the code", "IndexError: no such group", 'part)["date"]'],
    "trace-turn": ["Eleven articles. I ask a model about all of them at once.", "llm_query_batched(prompts)"],
    "trace-batch": ["1 of 11 failed", "429 Too Many Requests"],
    "trace-child": ["Quote the sentence on what a cascade depends on.", "out of its depth"],
    "trace-refused": ["evidence: expected list[str], got str 'Gantry-7'"],
    "trace-states": ["In prog", "Which article is the longest?", "502 Bad Gateway", "interrupted after 1 turn"],
    "trace-picture": ["output/articles_by_year.png", "Most were published in 2025."],
    "trace-interrupted": ["turn 2: interrupted", "interrupted after 1 turn; 2 model calls", "KeyboardInterrupt"],
    "trace-failed": ["turn 2: failed", "502 Bad Gateway"],
    "trace-in-progress": ["In progress", "turn 1", "Which article is the shortest?"],
    "trace-reviewed": ["turn 1: code refused", "on_code: refused", "on_tool: refused", "turn 3: SUBMIT refused"],
    "trace-resumed": [
        "RLM: resumed",
        "turn 3: SUBMIT",
        "resumed: the turns before are in the trace with the same rlm.run",
    ],
    "trace-session": ["Turn 1", "Turn 2", "How many parts are there?", "How does the last one begin?"],
    "trace-report": ["Submitted after 7 turns.", "Input coverage"],
}


@pytest.mark.long
@pytest.mark.browser
@pytest.mark.parametrize("page", SEEN)
def test_a_person_can_read_on_the_page_what_the_run_did(seen: Path, page: str) -> None:
    """The list of traces, the trace with failures, sub-calls and a child, and the report among the artifacts."""
    text = (seen / f"{page}.txt").read_text(encoding="utf-8")
    assert [part for part in SEEN[page] if part not in text] == []
