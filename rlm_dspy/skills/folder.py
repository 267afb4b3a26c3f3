"""Reads the folder of a skill: `SKILL.md` with its front matter, `tools.py`, and other files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlm_dspy.inputs import Files
from rlm_dspy.inputs.files import amount

if TYPE_CHECKING:
    from pathlib import Path

INSTRUCTIONS = "SKILL.md"
TOOLS = "tools.py"
_FENCE = "---"
_MOST_BYTES = 4_000_000
"""Of a file that is read."""
_MOST_FILES = 1_000
_SHOWN_FILES = 30
_EXAMPLE = "---\nname: invoices\ndescription: Reads totals and dates from invoices.\n---\nHow to do it ..."


class _FrontMatter(BaseModel):
    """What the head of a `SKILL.md` says; other programs read more of it."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    name: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=64)
    description: str = Field(min_length=1, max_length=1024)
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Skill:
    """One skill.

    Attributes:
        name: Its name in lower case, with hyphens.
        description: When to use it, and for what.
        packages: The packages that its functions import.
        files: All files of its folder, of which links and hidden ones are left out.
    """

    name: str
    description: str
    packages: tuple[str, ...]
    files: Files

    @classmethod
    def read(cls, folder: Path) -> Skill:
        """Return the skill in a folder.

        Raises:
            ValueError: If it is not a skill; the message says how to write one.
        """
        try:
            files = Files.open(folder, max_entries=_MOST_FILES)
            head, _ = _split(_text_of(files, INSTRUCTIONS))
            found = _FrontMatter.model_validate(yaml.safe_load(head))
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "front matter"
            raise ValueError(f"Invalid skill {folder}: {where}: {first['msg']}. Write e.g.\n{_EXAMPLE}") from None
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ValueError(f"Invalid skill {folder}: {' '.join(str(error).split())}") from None
        return cls(found.name, " ".join(found.description.split()), found.packages, files)

    @property
    def instructions(self) -> str:
        """The text below the front matter, and the names of the other files."""
        _, text = _split(_text_of(self.files, INSTRUCTIONS))
        others = [name for name in self.files if name not in (INSTRUCTIONS, TOOLS)]
        listed = [f"- {name} ({amount(self.files.sizes[name])})" for name in others[:_SHOWN_FILES]]
        left = [f"- and {len(others) - _SHOWN_FILES} others"] if len(others) > _SHOWN_FILES else []
        return "\n".join([text.strip(), *(["", "Files:"] if others else []), *listed, *left])

    @property
    def tools(self) -> str:
        """The source of its functions; empty without."""
        return _text_of(self.files, TOOLS) if TOOLS in self.files else ""

    def file(self, name: str) -> str:
        """Return the text of a file.

        Raises:
            ValueError: If there is none, or it is too large, or it is not text.
        """
        if name not in self.files:
            raise ValueError(f"The skill {self.name!r} has no file {name!r}. It has {', '.join(self.files)}.")
        return _text_of(self.files, name)


def _text_of(files: Files, name: str) -> str:
    if name not in files:
        raise ValueError(f"it has no {name}. Write one that begins with\n{_EXAMPLE}")
    if files.sizes[name] > _MOST_BYTES:
        raise ValueError(f"{name} has {amount(files.sizes[name])}; at most {amount(_MOST_BYTES)} are read")
    ((text, after),) = files.fetch([(name, 0)])
    if text is None:
        raise ValueError(str(after))
    return text


def _split(text: str) -> tuple[str, str]:
    """Return the front matter and the text below it."""
    lines = text.removeprefix("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != _FENCE or _FENCE not in [line.rstrip() for line in lines[1:]]:
        raise ValueError(f"{INSTRUCTIONS} has no front matter. Begin it with\n{_EXAMPLE}")
    end = [line.rstrip() for line in lines].index(_FENCE, 1)
    return "\n".join(lines[1:end]), "\n".join(lines[end + 1 :])
