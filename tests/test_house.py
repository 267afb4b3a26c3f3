"""How the package is built: floors, names, what an import does, what a wheel holds."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import rlm_dspy
from rlm_dspy.replies.code_blocks import tree_of

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
FOLDERS: dict[str, Path] = {name: ROOT / path for name, path in SETUPTOOLS["package-dir"].items()}

RULE = (
    "cli > service > tracing > batch > mcp | skills > replay | optimize > loop > resume > observe > sessions"
    " > compute > report > subcalls > prompt > streaming > grounding | approval"
    " > budget | repl | coverage | embedded | cache | signatures > inputs > interpreters | replies"
    " > concurrency > events"
)
"""A package imports only packages to the right of a `>` behind it; `|` means not each other."""
VALUES = {
    *(
        "_dspy_compat",
        "artifacts",
        "errors",
        "limits",
        "trajectory",
        "text",
        "json_values",
        "redaction",
        "usage",
    ),
}
"""Modules at the root that every package may import; they import only one another."""
FACES = {"__init__", "__main__", "models", "testing"}
"""Modules at the root that may import any package. Of the packages only `cli` imports them: `models`, and the
`__init__` for the names that it imports on first use."""
RANKS = {name.strip(): rank for rank, floor in enumerate(reversed(RULE.split(">"))) for name in floor.split("|")}
MOST_MODULES = 13
"""In one package folder, `__init__` included."""
MOST_LINES = 400
"""In one module."""


def modules() -> Iterator[tuple[str, Path]]:
    """Yield the dotted name below `rlm_dspy` and the file of every module, each file once."""
    for package, folder in FOLDERS.items():
        for path in sorted(folder.glob("*.py")):
            inner = package.removeprefix("rlm_dspy").removeprefix(".")
            yield f"{inner}.{path.stem}" if inner else path.stem, path


MODULES = dict(modules())


def imports(path: Path) -> set[str]:
    """Return what a file imports of this package, for type checkers too, by dotted name below `rlm_dspy`."""
    tree = tree_of(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(node, path)
            of_package = module in FOLDERS
            found |= {f"{module}.{alias.name}" if of_package else module for alias in node.names}
    ours = {
        name.removeprefix("rlm_dspy").removeprefix(".") for name in found if f"{name}.".startswith("rlm_dspy.")
    }
    known = {module.split(".")[0] for module in MODULES}
    return {name if name.split(".")[0] in known else "__init__" for name in ours}


def _absolute(node: ast.ImportFrom, path: Path) -> str:
    """Return the module an import is from; the confined worker's modules are imported under two package names."""
    if not node.level:
        return str(node.module)
    (package,) = [name for name, folder in FOLDERS.items() if folder == path.parent]
    parents = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*parents, *([node.module] if node.module else [])])


def room_of(name: str) -> str:
    """Return the package of a module, or the module itself if it lies at the root."""
    return name.split(".", maxsplit=1)[0]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_a_room(name: str) -> None:
    """A new package must be placed in `RULE`, a new module at the root in `VALUES` or `FACES`."""
    assert [room_of(name) in place for place in (RANKS, VALUES, FACES)].count(True) == 1


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name: str) -> None:
    """Imports for type checkers count."""
    room = room_of(name)
    others = {room_of(other) for other in imports(MODULES[name])} - {room}
    if room in FACES:
        return
    if room in VALUES:
        assert others <= VALUES
    else:
        assert {other for other in others if RANKS.get(other, -1) >= RANKS[room]} == set()
        assert others & FACES <= ({"models", "__init__"} if room == "cli" else set())


COMPAT = {"_dspy_compat": "dspy", "tracing._mlflow_compat": "mlflow"}
"""The one module for each that may import from its inner modules, and touch private attributes of its objects."""
PUBLIC = {"dspy", "dspy.lm15", "mlflow", "mlflow.entities", "mlflow.genai.scorers", "mlflow.models"} | {
    "mlflow.types.schema"
}
PUBLIC_IN_PYTHON = {"_fields", "_asdict", "_field_defaults", "_replace", "_make", "_exit"}
"""Of namedtuples, and of `os`."""


def ours_to_look_at() -> list[str]:
    """Return the modules that run on the host; those of `interpreters` do not know DSPy's objects."""
    others = ("interpreters", "repl.in_repl")
    return [name for name in MODULES if not name.startswith(others) and name not in COMPAT]


@pytest.mark.parametrize("name", ours_to_look_at())
def test_inner_names_of_dspy_and_mlflow_stand_in_one_module_each(name: str) -> None:
    """If a name moves inside of them, one module has to change."""
    tree = tree_of(MODULES[name].read_text(encoding="utf-8"))
    named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    named |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {module for module in named if module.split(".")[0] in COMPAT.values()} <= PUBLIC


@pytest.mark.parametrize("name", ours_to_look_at())
def test_private_attributes_are_a_modules_own(name: str) -> None:
    """An attribute `_x` is of a class of the same module: no other object's is touched, by `getattr` neither."""
    tree = tree_of(MODULES[name].read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    own = {node.name for node in ast.walk(tree) if isinstance(node, functions)}
    touched: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            own.add(node.target.id)
        elif isinstance(node, ast.Attribute):
            is_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            (own if is_own else touched).add(node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            touched |= {str(part.value) for part in node.args[1:2] if isinstance(part, ast.Constant)}
    private = {name for name in touched if name.startswith("_") and not name.startswith("__")}
    assert private - own - PUBLIC_IN_PYTHON == set()


@pytest.mark.parametrize("package", [*FOLDERS, "values"])
def test_no_circle_inside_a_package(package: str) -> None:
    """Apart from `__init__`, which names them all, some order of the modules needs no later one."""
    inside = package.removeprefix("rlm_dspy").removeprefix(".")
    members = {
        name
        for name in MODULES
        if (name in VALUES if package == "values" else name.startswith(inside + "."))
        and not name.endswith("__init__")
    }
    waiting = {name: imports(MODULES[name]) & members - {name} for name in members}
    while waiting:
        ready = {name for name, needs in waiting.items() if not needs & waiting.keys()}
        assert ready, waiting
        waiting = {name: needs for name, needs in waiting.items() if name not in ready}


@pytest.mark.parametrize("package", FOLDERS)
def test_a_package_folder_is_small_enough_to_read(package: str) -> None:
    """At most 13 modules: a person finds their way by the list of files."""
    assert len(list(FOLDERS[package].glob("*.py"))) <= MOST_MODULES


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_short_enough_to_read(name: str) -> None:
    """What is longer has two subjects."""
    assert len(MODULES[name].read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_the_packages_are_the_folders_with_an_init() -> None:
    """What setuptools is told is what there is; nothing is lost on the way into a wheel."""
    assert set(SETUPTOOLS["packages"]) == set(FOLDERS)
    inner = {init.parent.resolve() for root in FOLDERS.values() for init in root.rglob("__init__.py")}
    assert {folder.resolve() for folder in FOLDERS.values()} >= inner
    assert all((folder / "__init__.py").is_file() for folder in FOLDERS.values())
    tops = [ROOT / top for top in ("rlm_dspy", "interpreters", "signatures")]
    found = {init.parent.resolve() for top in tops for init in top.rglob("__init__.py")}
    assert found == set(FOLDERS.values())


@pytest.mark.parametrize("package", FOLDERS)
def test_every_public_name_is_there_and_listed(package: str) -> None:
    """`__all__` is exact: sorted, importable, and without a public name of ours left out.

    What a package imports for type checkers alone counts: it resolves these names on first use.
    """
    module = importlib.import_module(package)
    names: list[str] = getattr(module, "__all__", [])  # rooms without a public face list none
    assert len(names) == len(set(names))
    assert all(hasattr(module, name) for name in names)
    tree = tree_of((FOLDERS[package] / "__init__.py").read_text(encoding="utf-8"))
    for_checkers = [node for choice in tree.body if isinstance(choice, ast.If) for node in choice.body]
    imported = {
        alias.asname or alias.name
        for node in [*tree.body, *for_checkers]
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("rlm_dspy")
        for alias in node.names
    }
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert {name for name in imported | defined if not name.startswith("_")} == set(names)


IMPORT = """
import os, sys, threading
import dspy
before, threads = set(sys.modules), threading.active_count()
import rlm_dspy
for name in rlm_dspy.__all__:
    getattr(rlm_dspy, name)
heavy = {"mlflow", "litellm", "xllamacpp", "numpy", "pandas", "rich", "typer", "torch"}
loaded = sorted({name.split(".")[0] for name in set(sys.modules) - before} & heavy)
children = ""
if os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        children = file.read()
assert not loaded, loaded
assert threading.active_count() == threads, threading.enumerate()
assert not children.strip(), children
"""


def test_an_import_does_nothing(tmp_path: Path) -> None:
    """It prints nothing, writes nothing, starts nothing, and loads nothing heavy beyond what dspy loads."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    cache = tmp_path / "cache"  # dspy's own, made by its import
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "DSPY_CACHEDIR": str(cache),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-W", "error", "-c", IMPORT]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(home.rglob("*")) == []
    assert list(here.rglob("*")) == []


def test_names_of_the_package_are_imported_on_first_use() -> None:
    """Modules are attributes too; there are no others."""
    assert {"RLM", "Limits", "interpreters"} < set(dir(rlm_dspy))
    assert rlm_dspy.RLM is vars(rlm_dspy)["RLM"] is importlib.import_module("rlm_dspy.loop.rlm").RLM
    with pytest.raises(AttributeError, match=r"module 'rlm_dspy' has no attribute 'RML'"):
        getattr(rlm_dspy, "RML")  # noqa: B009 (a type checker would see it)


def test_the_root_of_the_repository_is_no_second_name_for_a_sub_package() -> None:
    """`interpreters` and `signatures` are imported as `rlm_dspy.*` alone: a file has one module."""
    for path in [
        path
        for top in ("rlm_dspy", "interpreters", "signatures", "experiment", "tests")
        for path in (ROOT / top).rglob("*.py")
    ]:
        if ".venv" in path.parts or "build" in path.parts:
            continue
        for node in ast.walk(tree_of(path.read_text(encoding="utf-8"))):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            named += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in named} & {"interpreters", "signatures"}, path


@pytest.mark.long
def test_a_wheel_holds_every_module_and_the_data(tmp_path: Path) -> None:
    """Built by the back-end in an environment of its own, from a copy of the sources."""
    build = tmp_path / "build"
    venv.create(build, with_pip=True)
    python = str(build / "bin" / "python")
    command = [python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path)]
    subprocess.run([*command, str(copied(tmp_path))], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {f"rlm_dspy/{name.replace('.', '/')}.py" for name in MODULES}
    data = {
        "signatures/policies": "*.json",
        "rlm_dspy/embedded": "*.json",
        "rlm_dspy/report/templates": "*",
    }
    files = {path.relative_to(ROOT) for folder, names in data.items() for path in (ROOT / folder).glob(names)}
    held_data = {f"rlm_dspy/{path.as_posix().removeprefix('rlm_dspy/')}" for path in files}
    assert held == modules | held_data | {"rlm_dspy/py.typed"}


def copied(tmp_path: Path) -> Path:
    """Return a copy of what a wheel is built of, without the links and without earlier builds."""
    copy = tmp_path / "sources"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (copy / name).write_bytes((ROOT / name).read_bytes())
    for folder in FOLDERS.values():
        for path in folder.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and not path.is_symlink():
                target = copy / path.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    return copy
