"""`experiment/PUBLIC_NAMES.md` lists what a program may import: no more, no less."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import rlm_dspy

if TYPE_CHECKING:
    from types import ModuleType

LIST = (Path(__file__).resolve().parent.parent / "experiment" / "PUBLIC_NAMES.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## `([\w.]+)`\n(.*?)(?=^## |\Z)", LIST, re.MULTILINE | re.DOTALL))
PUBLIC = {module: re.findall(r"^- `(\w+)`: .", text, re.MULTILINE) for module, text in SECTIONS.items()}
INSIDE = {
    module: re.findall(r"`(\w+)`", "".join(re.findall(r"^- \*inside\*: (.*)", text, re.MULTILINE)))
    for module, text in SECTIONS.items()
}


def exported(module: ModuleType) -> list[str]:
    """Return `__all__`, or without it the names that the module defines and that do not begin with `_`."""
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    names: list[str] = getattr(module, "__all__", [name for name in own if not name.startswith("_")])
    return names


@pytest.mark.parametrize("name", SECTIONS)
def test_the_list_names_exactly_what_a_module_exports(name: str) -> None:
    """A new name is public only by decision, and none leaves unseen."""
    assert sorted(PUBLIC[name] + INSIDE[name]) == sorted(exported(importlib.import_module(name)))


@pytest.mark.parametrize("name", SECTIONS)
def test_every_public_class_and_function_has_a_docstring(name: str) -> None:
    """`help()` says what it is."""
    values = [getattr(importlib.import_module(name), public) for public in PUBLIC[name]]
    documented = [value for value in values if inspect.isclass(value) or inspect.isfunction(value)]
    assert [value for value in documented if not inspect.getdoc(value)] == []


def test_every_module_that_is_an_attribute_of_the_package_is_listed() -> None:
    """`rlm_dspy.tracing` after `import rlm_dspy`."""
    assert {f"rlm_dspy.{name}" for name in rlm_dspy._PUBLIC} < SECTIONS.keys()
