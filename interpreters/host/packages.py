"""Finds the installed files of the packages that a worker may import, and of their requirements."""

from __future__ import annotations

import csv
import re
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from rlm_dspy.interpreters.worker.importing import SUFFIXES, outer_packages

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MODULE = re.compile(r"(\w+/)*\w+\.[^/]+")
_EDITABLE = "__editable__"


def required(preload: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Return what the distributions of some modules, and the distributions that these require, have installed.

    A requirement counts if it is installed, whatever its marker says; requirements of extras do not count.

    Args:
        preload: Dotted names of modules. One that no distribution provides adds nothing.

    Returns:
        The file of each top-level module by its dotted name, of a package its `__init__`, and of a namespace
        package its members instead; and the folders of bundled shared libraries.
    """
    modules: dict[str, str] = {}
    libraries: list[str] = []
    seen: set[str] = set()
    waiting = [distribution for name in preload for distribution in _providers(name)]
    while waiting:
        distribution = waiting.pop()
        name = distribution.metadata["Name"]
        if name in seen:
            continue
        seen.add(name)
        files = _modules(distribution)
        modules |= {module: str(distribution.locate_file(path)) for module, path in files.items()}
        tops = {path.partition("/")[0] for path in _paths(distribution)}
        libraries += [str(distribution.locate_file(top)) for top in tops if top.endswith(".libs")]
        waiting += _requirements(distribution)
    return modules, libraries


def _providers(module: str) -> list[metadata.Distribution]:
    """Return the distributions that provide a module: usually one, and usually of the same name."""
    top = module.partition(".")[0]
    same_name = [found for found in _installed(top) if _provides(found, module)]
    if same_name:
        return same_name
    names = metadata.packages_distributions().get(top, ())  # slow: it reads what every distribution has installed
    return [found for name in names for found in _installed(name) if _provides(found, module)]


def _provides(distribution: metadata.Distribution, module: str) -> bool:
    return any(f"{module}.".startswith(f"{name}.") for name in _modules(distribution))


def _installed(name: str) -> list[metadata.Distribution]:
    try:
        return [metadata.distribution(name)]
    except metadata.PackageNotFoundError:
        return []


def _requirements(distribution: metadata.Distribution) -> Iterator[metadata.Distribution]:
    for requirement in distribution.requires or ():
        specifier, _, marker = requirement.partition(";")
        name = _NAME.match(specifier.strip())
        if name and "extra" not in marker:
            yield from _installed(name[0])


def _modules(distribution: metadata.Distribution) -> dict[str, str]:
    """Return the file of each module that is in no package, and of each package that is in no other."""
    modules = {_dotted(path): path for path in _paths(distribution) if _is_module(path)}
    return {
        name: path for name, path in modules.items() if not any(outer in modules for outer in outer_packages(name))
    }


def _paths(distribution: metadata.Distribution) -> list[str]:
    """Return what a distribution has installed, relative to where it is; of an old one only its modules."""
    record = distribution.read_text("RECORD")
    if record is not None:
        return [row[0] for row in csv.reader(record.splitlines()) if row]
    tops = (distribution.read_text("top_level.txt") or distribution.metadata["Name"].replace("-", "_")).split()
    places = (f"{top}{inner}{suffix}" for top in tops for inner in ("/__init__", "") for suffix in SUFFIXES)
    return [place for place in places if Path(str(distribution.locate_file(place))).is_file()]


def _is_module(path: str) -> bool:
    """Return whether a file can be imported from its place; an editable install's own finder is left out."""
    return path.endswith(SUFFIXES) and bool(_MODULE.fullmatch(path)) and not path.startswith(_EDITABLE)


def _dotted(path: str) -> str:
    return path.partition(".")[0].removesuffix("/__init__").replace("/", ".")
