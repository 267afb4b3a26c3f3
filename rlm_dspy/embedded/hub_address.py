"""Reads addresses of models on the hub, and chooses the file that an address means.

hf:owner/repository                                Q4_K_M if there is one (see `choose_files`)
hf:owner/repository:Q8_0                           the file of this quantization
hf:owner/repository/folder/file.gguf               this file, with all its parts if it is split
hf:owner/repository:Q8_0@v1.0                      of a revision: a branch, tag or commit
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from rlm_dspy.embedded.model_catalog import CATALOGUE, CatalogueModel, find_model
from rlm_dspy.errors import UnknownModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_PREFIX = "hf:"
_ADDRESS = re.compile(
    r"hf:(?!.*/\.\.?/)(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)(?:/(?P<file>[^:@]+\.gguf))?"
    r"(?::(?P<quantization>[\w.-]+))?(?:@(?P<revision>\S+))?",
    re.IGNORECASE,
)
_QUANTIZATION = re.compile(r"(?<![a-z0-9])(?:(?:iq|tq|q)(\d)(?:_\w+)?|mxfp(\d)\w*|(?:bf|f|fp)(16|32))(?![a-z0-9])")
_PREFERRED = "Q4_K_M"
_ENOUGH_BITS = 4
_PART = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)", re.IGNORECASE)
_NO_MODEL = ("mmproj", "imatrix")
"""In the names of GGUF files that hold no language model."""
_LISTED = 12
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class HubFile:
    """A file of a repository, as the hub lists it."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class HubFiles:
    """The GGUF files of a repository, or those of one model, at a commit."""

    address: str = ""
    commit: str
    files: list[HubFile]

    @classmethod
    def from_json(cls, data: bytes) -> HubFiles:
        """Read what `to_json` wrote, or the hub listed.

        Raises:
            ValueError: If it is something else, or a name or a checksum (both become paths) leads out of it.
        """
        from pydantic import TypeAdapter

        found = TypeAdapter(cls).validate_json(data)
        for file in found.files:
            path = PureWindowsPath(file.name)
            if path.anchor or ".." in path.parts:
                raise ValueError(f"{file.name!r:.80} is not the path of a file in a repository")
            if not _SHA256.fullmatch(file.sha256):
                raise ValueError(f"{file.sha256!r:.80} is not a SHA-256")
        return found

    def to_json(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self), indent=1)


@dataclass(frozen=True)
class HubAddress:
    """The address of a model on the hub.

    Attributes:
        repository: `owner/name`.
        file: The path of a file in it; empty to choose by quantization.
        quantization: Such as `Q4_K_M`; empty for the best.
        revision: A branch, tag or commit; empty for `main`.
    """

    repository: str
    file: str = ""
    quantization: str = ""
    revision: str = ""

    @property
    def within(self) -> str:
        """What follows the repository."""
        marked = [("/", self.file), (":", self.quantization), ("@", self.revision)]
        return "".join(mark + value for mark, value in marked if value)

    @property
    def name(self) -> str:
        """The address as text."""
        return f"{_PREFIX}{self.repository}{self.within}"

    def means(self, model: CatalogueModel) -> bool:
        """Whether it is the address of a model of the catalogue, which other sources may have too."""
        if self.revision or self.repository.lower() != model.hub.source.lower():
            return False
        if self.file:
            return self.file == model.hub.path
        return (self.quantization or _PREFERRED).upper() == quantization_of(model.hub.path)


def read_address(text: str) -> HubAddress:
    """Return the address that a text is.

    Raises:
        UnknownModel: If it is none; the message shows the forms.
    """
    found = _ADDRESS.fullmatch(text)
    if found is None:
        raise UnknownModel(
            f"Invalid address {text!r}. Write hf:owner/repository; then /file.gguf or :Q4_K_M to choose a file, "
            "and @revision for another than the newest."
        )
    return HubAddress(**{name: value or "" for name, value in found.groupdict().items()})


def named_model(name: str) -> CatalogueModel | HubAddress | None:
    """Return the model of a name of the catalogue or an address; None if it is neither.

    Raises:
        UnknownModel: If it begins like an address and is none.
    """
    if not name.lower().startswith(_PREFIX):
        return find_model(name)
    address = read_address(name)
    return next((model for model in CATALOGUE if address.means(model)), address)


def entry_of(model: str | CatalogueModel | HubAddress) -> CatalogueModel | HubAddress:
    """Return the model of a name or an address; an entry is returned unchanged.

    Raises:
        UnknownModel: If the catalogue has no such model, or it is not an address.
    """
    entry = named_model(model) if isinstance(model, str) else model
    if entry is None:
        names = ", ".join(known.name for known in CATALOGUE)
        raise UnknownModel(
            f"Unknown model {model!r}; choose one of: {names}; or an address: hf:owner/repository:Q4_K_M."
        )
    return entry


def quantization_of(file: str) -> str:
    """Return the quantization that the name of a file ends with, in capitals; empty if it names none."""
    found = list(_QUANTIZATION.finditer(PurePosixPath(_PART.sub("", file)).stem.lower()))
    return found[-1][0].upper() if found else ""


def choose_files(address: HubAddress, files: Sequence[HubFile]) -> list[HubFile]:
    """Return the file that an address means, or all parts of a split one in order.

    Without a file and a quantization that is Q4_K_M; else the smallest of four bits or more; else the largest.

    Args:
        address: The address.
        files: The GGUF files of its repository.

    Raises:
        UnknownModel: If it means none or several, or a part is missing; the message lists what there is.
    """
    models: dict[str, list[HubFile]] = {}
    for file in sorted(files, key=lambda file: file.name):
        models.setdefault(_PART.sub("", file.name), []).append(file)
    if address.file:
        wanted = [parts for name, parts in models.items() if name == _PART.sub("", address.file)]
    else:
        known = {name: parts for name, parts in models.items() if not any(n in name.lower() for n in _NO_MODEL)}
        best = min(known, key=lambda name: _rank(name, sum(part.size for part in known[name])), default="")
        asked = address.quantization.upper() or quantization_of(best)
        wanted = [parts for name, parts in known.items() if quantization_of(name) == asked]
    if len(wanted) != 1:
        why = "means several files" if wanted else "has no such GGUF file"
        names = [file.name for parts in wanted or models.values() for file in parts[:1]]
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        there = f"Name one: {', '.join(names[:_LISTED])}{more}" if names else "It has no GGUF file at all"
        raise UnknownModel(f"{address.name} {why}. {there}.")
    (parts,) = wanted
    if missing := missing_parts(part.name for part in parts):
        raise UnknownModel(f"{address.name} is incomplete: the repository has no {', '.join(missing)}.")
    return parts


def missing_parts(names: Iterable[str]) -> list[str]:
    """Return the names of the parts that a split model should have and has not; empty for a whole one."""
    have = list(names)
    return [name for name in parts_of(have[0]) if name not in have]


def parts_of(name: str) -> list[str]:
    """Return the names of all parts of a split model, in order, from the name of one; of a whole model its own."""
    found = _PART.search(name)
    if found is None:
        return [name]
    return [_PART.sub(f"-{part:05}-of-{found[2]}", name) for part in range(1, int(found[2]) + 1)]


def _rank(name: str, size: int) -> tuple[bool, bool, int]:
    """Return a key by which the best file of a repository comes first."""
    tag = quantization_of(name)
    found = _QUANTIZATION.fullmatch(tag.lower())
    bits = int(next(filter(None, found.groups()))) if found else 0
    enough = bits >= _ENOUGH_BITS
    return tag != _PREFERRED, not enough, size if enough else -size
