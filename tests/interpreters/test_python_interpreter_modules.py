"""The confined interpreter beyond the common contract: the modules that code imports, writes and changes."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from rlm_dspy.interpreters.base import CellError
from rlm_dspy.interpreters.python import PythonInterpreter
from tests.interpreters.confined import light

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the confinement is of Linux")


class TestModules:
    def test_a_wheel_or_folder_that_was_named_can_be_imported(self, tmp_path: Path) -> None:
        """Read-only; what was not named cannot."""
        (tmp_path / "extra.py").write_text("answer = 42")
        tmp_path.chmod(0o755)
        with light(paths=[tmp_path]) as repl:
            assert repl.execute("import extra\nextra.answer") == 42
            with pytest.raises(CellError, match=r"PermissionError|Read-only"):
                repl.execute(f"open({str(tmp_path / 'extra.py')!r}, 'w')")
            with pytest.raises(CellError, match="ModuleNotFoundError"):
                repl.execute("import dspy")

    def test_a_wheel_can_be_imported(self, tmp_path: Path) -> None:
        """As it is, not unpacked."""
        wheel = tmp_path / "extra-1-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as file:
            file.writestr("packed/__init__.py", "answer = 42")
        tmp_path.chmod(0o755)
        with light(paths=[wheel]) as repl:
            assert repl.execute("import packed\npacked.answer") == 42

    def test_a_package_that_was_named_and_is_missing_is_told(self) -> None:
        """At once, not by an error of the model's code; a name is not taken for a list of letters."""
        with pytest.raises(ValueError, match="'no_such_package', which is not installed in this Python"):
            PythonInterpreter(packages=["no_such_package"])
        with pytest.raises(ValueError, match=r"packages=\['numpy'\]"):
            PythonInterpreter(packages="numpy")
        with pytest.raises(
            ValueError, match=r"paths=\['/srv/data'\]"
        ):  # its first letter is the whole file system
            PythonInterpreter(paths="/srv/data")

    def test_the_standard_library_is_there(self) -> None:
        """Also what nothing had loaded before."""
        modules = "sqlite3 ssl decimal csv zipfile lzma bz2 ctypes unittest turtle_ xmlrpc.client difflib tomllib email wave"
        code = f"import importlib\nfor m in {modules.replace('turtle_ ', '').split()}: importlib.import_module(m)"
        with light() as repl:
            assert repl.execute(code) is None

    def test_random_numbers_differ_between_workers(self) -> None:
        """They were forked from one process."""
        code = "import random, numpy as np\nrandom.random(), float(np.random.random())"
        seen = set()
        for _ in range(3):
            with PythonInterpreter() as repl:
                seen.add(tuple(repl.execute(code)))
        assert len(seen) == 3

    def test_its_scratch_is_its_own_and_goes_with_it(self) -> None:
        """Its current folder, and the one for temporary files; another session does not see them."""
        with light() as repl, light() as other:
            write = "import tempfile, pathlib\npathlib.Path('mine').write_text('x')\n"
            repl.execute(write + "pathlib.Path(tempfile.gettempdir(), 't').write_text('y')")
            assert repl.execute("import os; sorted(os.listdir())") == ["mine", "t"]
            assert other.execute("import os, tempfile; os.listdir(), os.listdir(tempfile.gettempdir())") == [
                [],
                [],
            ]

    @pytest.mark.skipif(
        any(Path(folder).resolve().is_relative_to("/tmp") for folder in (sys.prefix, sys.base_prefix, __file__)),
        reason="Python or the package lies in /tmp, which is therefore not the scratch folder",
    )
    def test_tmp_is_its_scratch(self) -> None:
        """Code that writes to /tmp by name writes there."""
        with light() as repl:
            repl.execute("import pathlib; pathlib.Path('/tmp', 't').touch()")
            assert repl.execute("import os; os.listdir()") == ["t"]


def test_changed_builtins_are_those_of_cells_alone() -> None:
    """The worker, which runs the cells, keeps Python's."""
    with light() as repl:
        repl.execute("import builtins\nreal = len\nbuiltins.len = lambda _: 42\nbuiltins.isinstance = None")
        assert repl.execute("print(len('abc'))") == "42"
        assert repl.execute("builtins.len = real\nlen('abc')") == 3


def test_code_imports_a_module_that_it_wrote() -> None:
    """One of the name of a standard module does not take its place."""
    with light() as repl:
        repl.execute("open('own_module.py', 'w').write('FACT = 5')\nopen('colorsys.py', 'w').write('1 / 0')")
        assert repl.execute("import colorsys, own_module\nown_module.FACT") == 5
