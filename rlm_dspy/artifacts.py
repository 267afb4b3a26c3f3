"""Defines `Artifacts`: the files that the code of a run wrote below `output/`."""

from __future__ import annotations

import mimetypes
import threading
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, computed_field

from rlm_dspy.text import printable

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

FOLDER = "output"
"""The subfolder of the working directory of code whose files are kept."""
MAX_FILES = 100
"""Files that a run keeps, those of its children included."""
MAX_FILE_BYTES = 20 << 20
"""Bytes of one file."""
MAX_BYTES = 50 << 20
"""Bytes of all files of a run."""
_MAX_NAME_BYTES = 200


class Artifact(BaseModel):
    """A file that code wrote below `output/`. `model_dump` leaves out its content."""

    model_config = ConfigDict(frozen=True)

    name: str
    """The path below `output/`, with `/` between folders."""
    data: bytes = Field(exclude=True, repr=False)
    """The content."""

    @computed_field  # type: ignore[prop-decorator]  # as pydantic documents it
    @property
    def media_type(self) -> str:
        """The media type by the name's ending, e.g. `image/png`; `application/octet-stream` if unknown."""
        return mimetypes.guess_type(self.name)[0] or "application/octet-stream"

    @computed_field  # type: ignore[prop-decorator]
    @property
    def size(self) -> int:
        """The number of bytes."""
        return len(self.data)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the content to a file, and return the file's path.

        Args:
            path: The file, whose folders are made; or a folder that exists, where it keeps its own name.
        """
        target = Path(path)
        target = target / self.name if target.is_dir() else target
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(self.data)
        return target


class Artifacts(dict[str, Artifact]):
    """The files that a run's code wrote below `output/`, by name.

    Attributes:
        left_out: Why others were left out, by name.
    """

    def __init__(
        self, files: Mapping[str, Artifact] | None = None, left_out: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(files or {})
        self.left_out: dict[str, str] = dict(left_out or {})

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write the files under their names, and return their paths.

        Args:
            folder: The folder, made if it does not exist.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        return [artifact.save(Path(folder, name)) for name, artifact in self.items()]


class ArtifactStore:
    """Collects the files of a tree of runs. Names and contents come from untrusted code."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}
        self._left_out: dict[str, str] = {}
        self._lock = threading.Lock()

    def keep(self, name: str, data: bytes | None, size: int) -> str:
        """Keep the content of a file; it replaces an earlier one. Return why it was refused, or an empty text.

        Args:
            name: Its path below `output/`.
            data: Its content; None if it was too large to be sent.
            size: Its number of bytes.
        """
        with self._lock:
            self._forget(name)
            why = self._refusal(name, data, size)
            if data is not None and not why:
                self._files[name] = data
            elif len(self._left_out) < MAX_FILES:
                self._left_out[printable(name[:_MAX_NAME_BYTES])] = why
        return why

    def drop(self, name: str) -> None:
        """Forget a file that code has removed."""
        with self._lock:
            self._forget(name)

    def _forget(self, name: str) -> None:
        self._files.pop(name, None)
        self._left_out.pop(name, None)

    def _refusal(self, name: str, data: bytes | None, size: int) -> str:
        parts = PurePosixPath(name).parts
        plain = name.isprintable() and "\\" not in name and len(name.encode()) <= _MAX_NAME_BYTES
        if not plain or not parts or "/".join(parts) != name or ".." in parts:
            return "give it a shorter name of plain characters"
        other = next(
            (kept for kept in self._files if f"{kept}/".startswith(f"{name}/") or name.startswith(f"{kept}/")), ""
        )
        if other:
            return f"give it another name: {other} is kept, and a file cannot have the name of a folder"
        if data is None or size > MAX_FILE_BYTES:
            return f"it has {size:,} bytes, and a file may have {MAX_FILE_BYTES:,}"
        if len(self._files) >= MAX_FILES:
            return f"{MAX_FILES} files are kept, and no more"
        total = sum(map(len, self._files.values()))
        if total + len(data) > MAX_BYTES:
            return f"it has {size:,} bytes, and the files of a run may have {MAX_BYTES:,} together"
        return ""

    def below(self, prefix: str) -> Artifacts:
        """Return the files whose names begin with `prefix`, by the rest of the name."""
        with self._lock:
            files = {
                name.removeprefix(prefix): data for name, data in self._files.items() if name.startswith(prefix)
            }
            out = {
                name.removeprefix(prefix): why for name, why in self._left_out.items() if name.startswith(prefix)
            }
        return Artifacts({name: Artifact(name=name, data=data) for name, data in sorted(files.items())}, out)
