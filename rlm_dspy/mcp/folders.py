"""Defines `Folders`: the only files that a client of the MCP server may ask about."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rlm_dspy.errors import InvalidInputs
from rlm_dspy.inputs import Files, Text
from rlm_dspy.inputs.files import amount
from rlm_dspy.text import counted, expanded

if TYPE_CHECKING:
    from collections.abc import Sequence

_ALL = "**/*"
_LISTED = 500
_TEXT_BYTES = 20_000_000
"""A single file up to this size becomes a text, a larger one a `Files`."""


class Folders:
    """Folders by their names. Clients send patterns, which are matched with the names of the files below.

    No path from a client is ever opened. Links and hidden files are left out. A file is opened relative to its
    folder, one part of its path after the other, without following links.

    Args:
        paths: The folders.

    Raises:
        InvalidInputs: If one does not exist or is not a folder.
    """

    def __init__(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        self._paths: dict[str, Path] = {}
        for given in paths:
            path = Path(os.path.realpath(expanded(given)))
            if not str(given).strip() or not path.is_dir():
                raise InvalidInputs(
                    f"{str(given)!r} is not a folder. Name folders whose files clients may ask about."
                )
            name, number = path.name or "root", 2
            while name in self._paths:
                name, number = f"{path.name}-{number}", number + 1
            self._paths[name] = path

    @property
    def names(self) -> list[str]:
        """The names of the folders."""
        return list(self._paths)

    def files(self, folder: str, pattern: str) -> Files:
        """Return the files of a folder whose names match a pattern, as they are now.

        Args:
            folder: The name of a folder; may be empty if there is only one.
            pattern: `**/*.md`, or the name of a file.

        Raises:
            InvalidInputs: If there is no such folder or file; the message names no path.
        """
        name = folder or (self.names[0] if len(self._paths) == 1 else "")
        if name not in self._paths:
            raise InvalidInputs(
                f"There is no folder {folder!r}. The folders are {', '.join(map(repr, self.names))}."
            )
        path = self._paths[name]
        if path.resolve() != path:
            raise InvalidInputs(f"The folder {name!r} has become a link.")
        try:
            return Files.open(path, _simplified(pattern))
        except (OSError, ValueError):
            raise InvalidInputs(
                f"No file of {name!r} matches {pattern!r}, or it cannot be read. Use list_files to see the names, "
                f"{_ALL!r} for all files, '**/*.md' for those of one kind."
            ) from None

    def listing(self, folder: str, pattern: str) -> str:
        """Return names and sizes of the matching files, one per line, as many as a client can use."""
        files = self.files(folder, pattern)
        lines = [f"{name} ({amount(size)})" for name, size in list(files.sizes.items())[:_LISTED]]
        left = [f"... and {len(files) - _LISTED:,} more"] if len(files) > _LISTED else []
        return "\n".join([f"{counted(len(files), 'file')}, {amount(files.total)}", *lines, *left])


def source_of(files: Files) -> Files | Text:
    """Return the input of a run: the text of a single small file, else the files."""
    if len(files) == 1 and files.total <= _TEXT_BYTES:
        (name,) = files
        try:
            return Text(files[name])
        except (OSError, ValueError):
            raise InvalidInputs(f"{name} cannot be read: it is neither text nor a document.") from None
    return files


def _simplified(pattern: str) -> str:
    """Return an equal pattern without `**` after `**`, which would take exponential time."""
    parts = pattern.split("/")
    kept = [part for number, part in enumerate(parts) if part != "**" or parts[number - 1 : number] != ["**"]]
    return "/".join(kept)
