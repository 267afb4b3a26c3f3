"""Finds the modules that a worker may import, where it cannot list the folders they are in.

The standard library only.
"""

from __future__ import annotations

import os
import pkgutil
import re
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from importlib.metadata import DistributionFinder, PathDistribution
    from types import ModuleType

INSTALLED = ("site-packages", "dist-packages")
"""Names of folders that hold nothing but installed packages."""
SUFFIXES = (*SOURCE_SUFFIXES, *EXTENSION_SUFFIXES)


class Finder(MetaPathFinder):
    """Finds modules by the names of their files only, because their folders may not be listed.

    Args:
        files: The file of each module by dotted name, of a package its `__init__`.
        metadata: The `METADATA` of each distribution by its `normalized` name.
        standard: The folders of the standard library.
    """

    def __init__(self, files: dict[str, str], metadata: dict[str, str], standard: Sequence[str]) -> None:
        self._files = files
        self._metadata = metadata
        self._standard = standard
        self._namespaces = {outer for name in files for outer in outer_packages(name)}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module; None if it is not one of these."""
        file = self._files.get(fullname) or self._standard_file(fullname)
        if file is not None:
            inside = [str(Path(file).parent)] if is_package(file) else None
            return spec_from_file_location(fullname, file, submodule_search_locations=inside)
        if fullname in self._namespaces:
            spec = ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = []
            return spec
        return None

    def find_distributions(self, context: DistributionFinder.Context) -> list[PathDistribution]:
        """Return a distribution by its name, all without one: `importlib.metadata` asks for it."""
        from importlib.metadata import PathDistribution  # noqa: PLC0415 (few need it)

        names = self._metadata if context.name is None else [normalized(context.name)]
        return [PathDistribution(Path(self._metadata[name]).parent) for name in names if name in self._metadata]

    def _standard_file(self, name: str) -> str | None:
        if name not in sys.stdlib_module_names:
            return None
        places = (
            f"{folder}/{name}{inner}{suffix}"
            for folder in self._standard
            for inner in ("", "/__init__")
            for suffix in SUFFIXES
        )
        return next(filter(os.path.isfile, places), None)


def normalized(name: str) -> str:
    """Return a distribution's name in a form that all its spellings share: `ruamel_yaml` for `ruamel.yaml`."""
    return re.sub(r"[-_.]+", "_", name).lower()


def loaded(named: Iterable[str], search: Sequence[str]) -> list[str]:
    """Return the folders and files of the loaded modules that are not of the standard library.

    For a package this is the whole folder if it was asked for by name or is installed; else only its loaded files,
    because the folder may be a project.

    Args:
        named: The modules that were asked for.
        search: The folders where modules were looked for.
    """
    tops = {name.partition(".")[0] for name in named}
    standard = sys.stdlib_module_names | {"__main__", __name__.partition(".")[0]}
    installed = tuple(f"{folder}/" for folder in search if Path(folder).name in INSTALLED)
    found: dict[str, None] = {}
    for name in list(sys.modules):
        if name.partition(".")[0] in standard:
            continue
        for outer in (*outer_packages(name), name):
            file = getattr(sys.modules.get(outer), "__file__", None)
            if not file:
                continue
            whole = outer.partition(".")[0] in tops or file.startswith(installed)
            place = place_of(file, search) if whole else file
            found[place] = None
            if place != file:
                break
    return [path for path in found if not any(str(outer) in found for outer in Path(path).parents)]


def tops(packages: Iterable[str], paths: Iterable[str]) -> list[str]:
    """Return the outermost names of packages, and the names of the modules in folders and wheels."""
    bundled = (module.name for module in pkgutil.iter_modules(list(paths)))
    return sorted({name.partition(".")[0] for name in packages} | set(bundled))


def place_of(file: str, search: Sequence[str]) -> str:
    """Return the path that belongs to a module only: the folder of a package, else its file.

    A folder in which other modules are looked for is not its own: so is a project with a stray `__init__`.
    """
    folder = str(Path(file).parent)
    is_root = any(f"{path}/".startswith(f"{folder}/") for path in search)
    return folder if is_package(file) and not is_root else file


def outer_packages(name: str) -> list[str]:
    """Return the packages that contain a module of this dotted name, the outermost first."""
    return [name[:place] for place, letter in enumerate(name) if letter == "."]


def is_package(file: str) -> bool:
    """Return whether a module's file is the `__init__` of a package."""
    return Path(file).name.partition(".")[0] == "__init__"
