"""What is released: the sdist and the wheel, and each of them in a clean environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
USERS_PROGRAM = ROOT / "tests" / "typed_program.py"
SCRIPT = """
import dspy
from rlm_dspy import RLM
from rlm_dspy.testing import ScriptedLM

lm = ScriptedLM(["```python\\nSUBMIT(words=len(text.split()))\\n```"])
with dspy.context(lm=lm):
    print(RLM("text -> words: int")(text="to be or not to be").words)
"""
pytestmark = [pytest.mark.long, pytest.mark.skipif(shutil.which("uv") is None, reason="needs uv")]


def run(*command: str | Path, folder: Path) -> str:
    """Run a command in a folder; return what it prints."""
    done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the sdist, and the wheel that is made of it."""
    folder = tmp_path_factory.mktemp("release")
    run(ROOT / ".ci" / "release", folder, folder=ROOT)
    return folder


def test_the_sdist_holds_the_sources_and_nothing_else(built: Path) -> None:
    """No tests, no experiments, no measurements."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as sdist:
        held = {Path(*Path(member.name).parts[1:]) for member in sdist if not member.isdir()}
    written = {Path("PKG-INFO"), Path("setup.cfg"), Path("MANIFEST.in")}
    single = {Path(name) for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE")}
    tops = ("rlm_dspy", "interpreters", "signatures")
    tracked = {Path(name) for name in run("git", "ls-files", *tops, folder=ROOT).splitlines()}
    sources = {path for path in tracked if not (ROOT / path).is_symlink()}
    assert {path for path in held if path.parts[0] != "dspy_recursive_lm.egg-info"} == written | single | sources


def test_the_metadata_says_what_a_package_index_shows(built: Path) -> None:
    """License, interpreters, typing, and the README as Markdown."""
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        told = message_from_string(archive.read(metadata).decode())
    assert (told["Name"], told["Version"]) == (PROJECT["name"], PROJECT["version"])
    assert (told["License-Expression"], told["License-File"]) == ("MIT", "LICENSE")
    assert told["Requires-Python"] == ">=3.11"
    assert told["Description-Content-Type"] == "text/markdown"
    assert {"Typing :: Typed", "Programming Language :: Python :: 3.13"} <= set(told.get_all("Classifier", []))
    assert str(told.get_payload()).startswith("# ")


@pytest.fixture(
    scope="module", params=["3.11", *(pytest.param(each, marks=pytest.mark.by_hand) for each in ("3.12", "3.13"))]
)
def place(built: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the programs of an environment with the wheel, and tested versions of the rest."""
    folder = tmp_path_factory.mktemp("clean")
    (wheel,) = built.glob("*.whl")
    run("uv", "venv", "--quiet", "--python", request.param, "env", folder=folder)
    place = folder / "env" / "bin"
    constraints = ("--constraint", ROOT / ".ci" / "constraints.txt")
    run("uv", "pip", "install", "--quiet", "--python", place / "python", *constraints, wheel, folder=folder)
    return place


def test_the_wheel_runs_in_a_clean_environment(place: Path, tmp_path: Path) -> None:
    """Import, command line, and a run in the confined interpreter."""
    assert run(place / "rlm-dspy", "--version", folder=tmp_path) == f"rlm-dspy {PROJECT['version']}\n"
    assert "ask" in run(place / "rlm-dspy", "--help", folder=tmp_path)
    assert run(place / "python", "-c", SCRIPT, folder=tmp_path) == "6\n"


def test_mypy_knows_the_types_of_the_installed_package(place: Path, tmp_path: Path) -> None:
    """Right uses pass, and what a comment says to be wrong is an error."""
    untyped = "[mypy-dspy.*]\nignore_missing_imports = true\nfollow_imports = skip\n"
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nstrict = true\ndisallow_subclassing_any = false\n{untyped}")
    program = shutil.copy(USERS_PROGRAM, tmp_path)
    mypy = (sys.executable, "-m", "mypy", "--python-executable", place / "python")
    assert "no issues" in run(*mypy, program, folder=tmp_path)


@pytest.mark.by_hand
def test_pyright_knows_the_types_of_the_installed_package(place: Path, tmp_path: Path) -> None:
    """The same; pyright is fetched from the package index."""
    program = shutil.copy(USERS_PROGRAM, tmp_path)
    pyright = ("uvx", "--quiet", "--from", "pyright[nodejs]", "pyright", "--pythonpath", place / "python")
    assert "0 errors, 0 warnings" in run(*pyright, program, folder=tmp_path)
