"""Completion in shells: what is offered, and that it takes no run to know it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlm_dspy.cli.user.completion import complete_model
from tests.commands import environment


def test_names_of_models_are_completed() -> None:
    assert complete_model("smol") == ["smollm2-135m"]
    assert {"openai/", "anthropic/", "ollama/", "embedded"} <= set(complete_model(""))
    assert "openai/gpt-4o-mini" in complete_model("openai/gpt-4o")
    assert all(name.startswith("openai/gpt-4o") for name in complete_model("openai/gpt-4o"))
    assert len(complete_model("anthropi")) > 1  # one provider is left, so its models
    assert complete_model("no-such-model") == []


LAZY = """
import sys
sys.argv[0] = "rlm-dspy"
from rlm_dspy.cli.app import main
try:
    main()
except SystemExit:
    pass
heavy = {"dspy", "litellm", "mlflow", "httpx", "rich"} & {name.split(".")[0] for name in sys.modules}
assert not heavy, heavy
"""


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("rlm-dspy ask question --model smol", "smollm2-135m"),
        ("rlm-dspy ask question --sub-model openai/gpt-4o-min", "openai/gpt-4o-mini"),
        ("rlm-dspy optimize program.py --model smol", "smollm2-135m"),
        ("rlm-dspy models pull smol", "smollm2-135m"),
        ("rlm-dspy ask question --answer", "--answer-json"),
        ("rlm-dspy hist", "history"),
    ],
)
def test_a_shell_gets_its_completions_without_the_imports_of_a_run(words: str, offered: str) -> None:
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1), "_RLM_DSPY_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-c", LAZY], env={**environment(), **asked}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert offered in done.stdout.splitlines()


@pytest.mark.skipif(shutil.which("bash") is None, reason="wants bash")
def test_bash_completes_with_the_script_that_is_shown() -> None:
    """Where it offers nothing, `-o default` lets bash complete files."""
    folder = str(Path(sys.executable).parent)
    path = {**environment(), "PATH": os.pathsep.join([folder, os.environ["PATH"]]), "SHELL": "/bin/bash"}
    words = """COMP_WORDS=(rlm-dspy ask "'a q'" --model smol); COMP_CWORD=4; _rlm_dspy_completion rlm-dspy"""
    code = f'eval "$(rlm-dspy --show-completion bash)"; {words}; echo "${{COMPREPLY[@]}}"; complete -p rlm-dspy'
    done = subprocess.run(["bash", "-c", code], env=path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["smollm2-135m", "complete -o default -F _rlm_dspy_completion rlm-dspy"]
