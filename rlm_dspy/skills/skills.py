"""Defines `Skills`, the tool by which code in the REPL loads skills."""

from __future__ import annotations

import types
from pathlib import Path
from typing import TYPE_CHECKING

import dspy
from pydantic import PrivateAttr

from rlm_dspy.repl.defining_tool import DefiningTool, Definition
from rlm_dspy.skills.folder import INSTRUCTIONS, TOOLS, Skill
from rlm_dspy.text import one_line

if TYPE_CHECKING:
    import os

_DESCRIPTION = (
    "prints the instructions of a skill and defines its functions here; load_skill(name, file) returns the text "
    "of one of its files"
)
_LISTED_CHARS = 300


class Skills(DefiningTool):
    """The skills in folders, as a tool of an RLM: `RLM(signature, tools=[Skills("skills")])`.

    The prompt lists each skill with its description. Code loads one with `load_skill(name)`, which prints its
    instructions and defines the functions of its `tools.py` in the REPL: they run there, confined like all code,
    and the host reads the file only as text. Children have the same skills.

    Args:
        folders: Folders of skills, or of one skill each.

    Attributes:
        packages: The packages that the skills name in their front matter: `PythonInterpreter(packages=...)` has to
            allow them.

    Raises:
        ValueError: If a folder has no skill, a skill is not valid, or two have one name.
    """

    _skills: dict[str, Skill] = PrivateAttr(default_factory=dict)

    def __init__(self, *folders: str | os.PathLike[str]) -> None:
        skills: dict[str, Skill] = {}
        for skill in map(Skill.read, _skill_folders(folders)):
            if skill.name in skills:
                raise ValueError(
                    f"Two skills are named {skill.name!r}: rename one in the front matter of {INSTRUCTIONS}."
                )
            skills[skill.name] = skill

        def load_skill(name: str, file: str = "") -> Definition:
            if name not in skills:
                raise ValueError(f"There is no skill {name!r}. The skills are {', '.join(map(repr, skills))}.")
            skill = skills[name]
            if file:
                return Definition(name="", source="", shown="", value=skill.file(file))
            module = name.replace("-", "_")
            return Definition(name=module, source=skill.tools, shown=skill.instructions, value=None)

        super().__init__(load_skill, desc=_DESCRIPTION)
        listed = (f"{name!r}: {one_line(skill.description, _LISTED_CHARS)}" for name, skill in skills.items())
        self.listing = ("Skills; load one that fits before you work:", *listed)
        self._skills = skills

    @property
    def packages(self) -> list[str]:
        """The packages that all skills name, in alphabetical order."""
        return sorted({package for skill in self._skills.values() for package in skill.packages})

    def on_host(self, skill: str, *functions: str) -> list[dspy.Tool]:
        """Return functions of a skill as tools of the host.

            RLM("day -> price: float", tools=[skills, *skills.on_host("rates", "fetch")])

        Its `tools.py` is run in this process, with all rights of this process, now. In the REPL these names stay
        the host's, also for the other functions of the skill.

        Args:
            skill: The name of the skill.
            functions: The names of the functions.

        Raises:
            ValueError: If there is no such skill or function.
        """
        if skill not in self._skills:
            raise ValueError(f"There is no skill {skill!r}. The skills are {', '.join(map(repr, self._skills))}.")
        module = types.ModuleType(skill.replace("-", "_"))
        exec(compile(self._skills[skill].tools, TOOLS, "exec"), vars(module))  # noqa: S102 (the user asks for it)
        if missing := [name for name in functions if not callable(getattr(module, name, None))]:
            raise ValueError(f"The {TOOLS} of the skill {skill!r} has no function {missing[0]!r}.")
        return [dspy.Tool(getattr(module, name)) for name in functions]


def _skill_folders(given: tuple[str | os.PathLike[str], ...]) -> list[Path]:
    """Return the folders of skills: those given, or those in them."""
    found: list[Path] = []
    for folder in map(Path, given):
        path = folder.expanduser()
        if not path.is_dir():
            raise ValueError(f"There is no folder {folder}. Name one with skills: {folder}/NAME/{INSTRUCTIONS}.")
        inner = sorted(each.parent for each in path.glob(f"*/{INSTRUCTIONS}"))
        own = [path] if (path / INSTRUCTIONS).exists() else inner
        if not own:
            raise ValueError(
                f"{folder} has no skill. A skill is a folder with a {INSTRUCTIONS}: {folder}/NAME/{INSTRUCTIONS}."
            )
        found += own
    return found
