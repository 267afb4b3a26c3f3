"""Finds the packages that a worker may import: by name, with their files and requirements."""

from __future__ import annotations

import csv
import functools
import importlib.util
import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rlm_dspy.interpreters.worker import importing
from rlm_dspy.interpreters.worker.importing import SUFFIXES, outer_packages

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MODULE = re.compile(r"(\w+/)*\w+\.[^/]+")
_EDITABLE = "__editable__"
_DISTRIBUTIONS = {
    "PIL": "pillow",
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}
"""What to install for well-known modules whose distribution has another name."""


def listed(name: str, value: object) -> tuple[Any, ...]:
    """Return the items of a list that a user gives.

    Raises:
        ValueError: If it is not a list: the letters of a str would be taken for its items.
    """
    if isinstance(value, str | bytes | os.PathLike) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a list: {name}=[{value!r}].")  # noqa: TRY004 (as other wrong names)
    return tuple(value)


@functools.cache
def import_names(packages: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names to import packages by: `sklearn` for `sklearn` and for `scikit-learn`.

    Args:
        packages: Names of modules, or of distributions as they are installed.

    Raises:
        ValueError: If one is not installed.
    """
    names = dict.fromkeys(name for package in packages for name in _import_names(package))
    if "pandas" in names and is_installed("pyarrow"):
        names["pyarrow"] = None  # holds the texts of a DataFrame
    return tuple(names)


def _import_names(package: str) -> Sequence[str]:
    if is_installed(package):
        return [package]
    found = [name for distribution in _installed(package) for name in _modules(distribution)]
    tops = sorted({name.partition(".")[0] for name in found if not name.startswith("_")})
    if tops:
        return tops
    raise ValueError(
        f"packages names {package!r}, which is not installed in this Python. "
        f"Run `pip install {_DISTRIBUTIONS.get(package, package)}`, or leave it out."
    )


def is_installed(module: str) -> bool:
    """Return whether this process could import the outermost package of a module; nothing is imported."""
    top = module.partition(".")[0]
    with suppress(ValueError):  # a loaded module without a spec
        return top.isidentifier() and importlib.util.find_spec(top) is not None
    return False


def own_modules(packages: Iterable[str]) -> list[str]:
    """Return those that no distribution provides: what they import is only known by importing them."""
    named = (name for name in packages if name.partition(".")[0] not in sys.stdlib_module_names)
    return [name for name in named if not _providers(name)]


def import_hint(module: str, packages: Sequence[str], importable: Collection[str]) -> str:
    """Return a hint about a module that code could not import.

    Args:
        module: Its name, as the worker reports it.
        packages: What the interpreter allows.
        importable: What its workers can import beside the standard library.
    """
    top, only = module.partition(".")[0], only_these(importable)
    if top in importable or not top.isidentifier():
        return only
    if not is_installed(top):
        return f"{only} {top} is not installed."
    allowed = f"PythonInterpreter(packages={[*packages, top]})"
    return f"{only} {top} is installed, but not allowed here; the user allows it with {allowed}."


def only_these(importable: Collection[str]) -> str:
    """Return a sentence about what code can import besides the standard library."""
    return f"This REPL can import only these: {', '.join(('the standard library', *importable))}."


class Required(NamedTuple):
    """What the distributions of some modules, and the distributions that these require, have installed."""

    modules: dict[str, str]
    """The file of each top-level module by its dotted name, of a package its `__init__`, and of a namespace
    package its members instead."""
    libraries: list[str]
    """The folders of bundled shared libraries."""
    metadata: dict[str, str]
    """The `METADATA` of each distribution by `importing.normalized` name: some read their own version there."""


def required(packages: Iterable[str]) -> Required:
    """Return what some modules need.

    A requirement counts if it is installed, whatever its marker says; requirements of extras do not count.

    Args:
        packages: Dotted names of modules. One that no distribution provides adds nothing.
    """
    found = Required({}, [], {})
    seen: set[str] = set()
    waiting = [distribution for name in packages for distribution in _providers(name)]
    while waiting:
        distribution = waiting.pop()
        name = distribution.metadata["Name"]
        if name in seen:
            continue
        seen.add(name)
        files = _modules(distribution)
        found.modules.update({module: str(distribution.locate_file(path)) for module, path in files.items()})
        tops = {path.partition("/")[0] for path in _paths(distribution)}
        found.libraries.extend(str(distribution.locate_file(top)) for top in tops if top.endswith(".libs"))
        for top in tops:
            if top.endswith(".dist-info"):
                found.metadata[importing.normalized(name)] = str(distribution.locate_file(f"{top}/METADATA"))
        waiting += _requirements(distribution)
    return found


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
