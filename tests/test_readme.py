"""The two commands of the README, and the examples in docstrings; `test_docs` runs the README's Python."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("smollm2")
ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BASH_BLOCKS = re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
EXAMPLE = re.compile(r"^\s*>>> ", re.MULTILINE)
WITH_EXAMPLES = [
    "rlm_dspy.approval.terminal",
    "rlm_dspy.batch.module",
    "rlm_dspy.batch.runs",
    "rlm_dspy.cache.sub_call_cache",
    "rlm_dspy.loop.rlm",
    "rlm_dspy.observe.event_log",
    "rlm_dspy.observe.progress",
    "rlm_dspy.sessions.session",
    "rlm_dspy.testing",
]
NAMED_ELSEWHERE = ("RLM_DSPY_MODEL", "LM_STUDIO_API_BASE")


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a program in the checkout, with no model named."""
    environment = {name: value for name, value in os.environ.items() if name not in NAMED_ELSEWHERE}
    environment["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    return subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_in_docstrings_run(module: str) -> None:
    """And give what they say."""
    result = doctest.testmod(importlib.import_module(module))
    assert (result.attempted > 0, result.failed) == (True, 0)


def test_no_other_module_has_an_example_that_is_not_run() -> None:
    """A new example must be named above."""
    with_examples = {
        path.stem for path in (ROOT / "rlm_dspy").rglob("*.py") if EXAMPLE.search(path.read_text("utf-8"))
    }
    assert with_examples == {name.rpartition(".")[2] for name in WITH_EXAMPLES}


@pytest.mark.long
@pytest.mark.timeout(600)  # it takes 150 s alone on two slow processors, and other tests run beside it
@pytest.mark.usefixtures("default_model")
def test_the_main_job_is_answered_rightly_by_the_embedded_model() -> None:
    """The question of the first command, from the whole of articles.md, with no key and no server."""
    _, _, command = BASH_BLOCKS[0].strip().partition("uv run --extra embedded rlm-dspy ")
    done = run([sys.executable, "-m", "rlm_dspy", *shlex.split(command)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "Kadri Vaheste"


def test_ci_calls_the_test_command_of_the_readme() -> None:
    """The very line, so that what CI shows is what a user gets."""
    command = BASH_BLOCKS[1].strip()
    assert command == "uv run --extra embedded --group dev pytest"
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_the_readme_is_one_screen() -> None:
    """What is longer belongs in the documentation."""
    assert len(README.splitlines()) <= 150


def test_files_that_the_readme_links_are_there() -> None:
    """Every relative link."""
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
