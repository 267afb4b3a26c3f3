"""`ask --skills` and `--mcp`, and the same of the configuration file."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import dspy
import pytest
from typer.testing import CliRunner

from rlm_dspy.cli.app import app
from rlm_dspy.testing import ScriptedLM
from tests.playing import block

if TYPE_CHECKING:
    from pathlib import Path

PAGES = {"command": sys.executable, "args": ["-m", "tests.mcp_server"]}
SKILL = "---\nname: counting\ndescription: Counts words.\n---\nCall words(text).\n"
CODE = "load_skill('counting')\nSUBMIT(answer=f'{words(context)} words, {fetch(3)}')"


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a text beside a folder of skills, without a configuration file."""
    monkeypatch.setenv("RLM_DSPY_CONFIG", str(tmp_path / "config.toml"))
    (tmp_path / "config.toml").write_text("history = 0\n")
    (tmp_path / "skills" / "counting").mkdir(parents=True)
    (tmp_path / "skills" / "counting" / "SKILL.md").write_text(SKILL)
    (tmp_path / "skills" / "counting" / "tools.py").write_text("def words(text):\n    return len(text.split())\n")
    (tmp_path / "servers.json").write_text(json.dumps({"mcpServers": {"pages": PAGES}}))
    (tmp_path / "text.txt").write_text("to be or not")
    return tmp_path / "text.txt"


def asked(text: Path, *options: str) -> tuple[int, str]:
    """Run `ask`; return its exit code and what it wrote."""
    with dspy.context(lm=ScriptedLM([block(CODE)])):
        done = CliRunner().invoke(app, ["ask", "?", str(text), *options])
    return done.exit_code, done.output


def test_options_and_the_configuration_file_give_a_run_skills_and_mcp_tools(text: Path) -> None:
    """The servers are stopped when the answer is there."""
    options = ["--skills", str(text.parent / "skills"), "--mcp", str(text.parent / "servers.json")]
    code, said = asked(text, *options)
    assert (code, "4 words, page 3 of chapter one" in said) == (0, True), said
    lines = ["history = 0", f'skills = ["{text.parent / "skills"}"]', "[mcp_servers.pages]"]
    lines += [f'command = "{sys.executable}"', f"args = {PAGES['args']}"]
    (text.parent / "config.toml").write_text("\n".join(lines))
    code, said = asked(text)
    assert (code, "4 words, page 3 of chapter one" in said) == (0, True), said


def test_wrong_options_name_the_fix(text: Path) -> None:
    """Before the model is asked."""
    for options, why in [
        (["--skills", str(text.parent / "none")], "There is no folder"),
        (["--mcp", str(text.parent / "none.json")], "No such file"),
    ]:
        code, said = asked(text, *options)
        assert (code, why in said) == (2, True), said
    (text.parent / "config.toml").write_text("[mcp_servers.pages]\ncomand = 'x'\n")
    code, said = asked(text)
    assert (code, "unknown key 'mcp_servers.pages.comand'. The keys here are: command, args" in said) == (2, True)
