"""What a worker can read of a home with a project in it, on each rung of the kernel ladder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from rlm_dspy.interpreters import CellError, PythonInterpreter
from rlm_dspy.interpreters.confinement_policy import RUNGS
from rlm_dspy.interpreters.diagnosis import doctor, render
from rlm_dspy.interpreters.worker import importing
from tests.homes import CODE, SECRETS

HERE = Path(__file__).parents[1]
USERS = ["root", "ordinary"] if os.getuid() == 0 else ["ordinary"]
CASES = [(rung, user) for rung in RUNGS for user in USERS]
SITE = f"proj/.venv/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
PLACES = [name.format(site=SITE.removeprefix("proj/.venv/")) for name in (*SECRETS, *CODE)]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the confinement is of Linux")


@cache
def tried(rung: str, user: str) -> dict[str, Any]:
    """Build a home and let a cell read it, in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(HERE / "homes.py"), "+".join(sorted(RUNGS[rung])), user],
        env={**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(("rung", "user"), CASES)
def test_only_the_packages_that_are_allowed_and_required_can_be_read(rung: str, user: str) -> None:
    """Of a home, of a project, of an editable install and of other packages nothing; of a project's module its file."""
    alpha = {f"{SITE}/{name}" for name in ("alpha/__init__.py", "alpha/later.py", "alpha.libs/liba.so")}
    required = {f"{SITE}/{name}" for name in ("six_of_alpha.py", "shared_space/of_alpha/__init__.py")}
    loaded = {
        f"{SITE}/loaded_by_flat/__init__.py",
        "proj/flat.py",
        "proj/sidecar/__init__.py",
        "proj/sidecar/part.py",
    }
    assert set(tried(rung, user)["read"]) == alpha | required | loaded


@pytest.mark.parametrize(("rung", "user"), CASES)
def test_packages_of_the_python_that_the_environment_was_made_with_cannot_be_read(rung: str, user: str) -> None:
    """They lie within the standard library's folder."""
    assert tried(rung, user)["elsewhere"] == 0


@pytest.mark.parametrize(("rung", "user"), CASES)
def test_folders_above_packages_show_no_other_names(rung: str, user: str) -> None:
    """A worker lists at most what leads to the packages it may read."""
    names = {name for name in tried(rung, user)["listed"] if not any(path.startswith(name) for path in PLACES)}
    assert names == set()
    secret = {name.format(site=SITE.removeprefix("proj/.venv/")) for name in SECRETS}
    assert not secret & set(tried(rung, user)["listed"])


@pytest.mark.parametrize(("rung", "user"), CASES)
def test_what_allowed_packages_require_can_be_imported(rung: str, user: str) -> None:
    """A module of theirs that is not loaded yet, their requirements, and a member of a namespace package."""
    imports = tried(rung, user)["imports"]
    assert {name for name, error in imports.items() if not error} == {"alpha.later", "six_of_alpha", "wave"}


def test_an_import_of_anything_else_says_what_can_be_imported_and_how_it_is_allowed() -> None:
    """By name; what is not installed cannot be allowed."""
    only = "This REPL can import only these: the standard library, pydantic."
    allowed = "PythonInterpreter(packages=['pydantic', 'dspy'])"
    told = {
        "import dspy.predict": f"{only} dspy is installed, but not allowed here; the user allows it with {allowed}.",
        "import no_such_package": f"{only} no_such_package is not installed.",
        "import pydantic.no_such_module": only,
        "raise ModuleNotFoundError('own', name='../../etc')": only,
    }
    with PythonInterpreter(packages=["pydantic"]) as repl:
        for code, hint in told.items():
            with pytest.raises(CellError) as caught:
                repl.execute(code)
            assert str(caught.value).splitlines()[-1] == hint


def test_a_package_is_named_as_it_is_imported_or_as_it_is_installed() -> None:
    """`sklearn` is installed as `scikit-learn`, and `PIL` as `pillow`."""
    repl = PythonInterpreter(packages=["scikit-learn", "sklearn", "pillow", "dspy.predict"])
    assert " Packages: PIL, dspy, sklearn. " in repl.execution_instructions
    with repl:
        assert repl.execute("import PIL.Image\nPIL.Image.new('L', (2, 3)).size[1]") == 3
    assert PythonInterpreter().execution_instructions == PythonInterpreter.execution_instructions


def test_a_package_finds_its_own_version() -> None:
    """As `duckdb` does when it is imported; of what is not allowed there is none."""
    code = (
        "from importlib import metadata\n"
        "[metadata.version('DuckDB'), metadata.version('scikit_learn'), "
        "sorted(d.name for d in metadata.distributions() if d.name in ('duckdb', 'dspy'))]"
    )
    with PythonInterpreter(packages=["duckdb", "sklearn"]) as repl:
        versions = [metadata.version("duckdb"), metadata.version("scikit-learn")]
        assert repl.execute(code) == [*versions, ["duckdb"]]
        assert repl.execute("import duckdb\nduckdb.execute('select 6 * 7').fetchone()[0]") == 42
        with pytest.raises(CellError, match="No package metadata was found for dspy"):
            repl.execute("metadata.version('dspy')")


def test_a_package_is_loaded_when_code_asks_for_it() -> None:
    """Whoever does not use it does not pay for it."""
    with PythonInterpreter() as repl:
        assert repl.execute("import sys\n[n for n in ('numpy', 'pandas', 'pydantic') if n in sys.modules]") == []
        assert repl.execute("import pandas\nlen(pandas.DataFrame({'a': ['x', 'y']}))") == 2


def test_a_project_with_a_stray_init_is_not_taken_for_a_package() -> None:
    """Modules are looked for inside it, so that its folder is not one module's own."""
    search = ["/home/me", "/home/me/project/src", "/home/me/project/.venv/site-packages"]
    places = {"/home/me/project": False, "/home/me/project/src": False, "/home/me/project/src/package": True}
    for folder, own in places.items():
        assert importing.place_of(f"{folder}/__init__.py", search) == (folder if own else f"{folder}/__init__.py")


def test_the_doctor_lists_what_can_be_read() -> None:
    """Python, the packages by name, and nothing that they lie in."""
    found = doctor()
    if not found.chosen:
        pytest.skip("no worker runs here")
    assert str(Path(os.__file__).parent) in found.readable
    packages = [path for path in found.readable if Path(path).parent.name == "site-packages"]
    assert "numpy" in {Path(path).name for path in packages}
    assert not {"dspy", "litellm", "rlm_dspy"} & {Path(path).name for path in found.readable}
    assert not any(path.endswith("site-packages") or Path.home() == Path(path) for path in found.readable)
    assert str(Path(packages[0]).parent) in render(found)
