"""Opens a `pathlib.Path` that is given as an input."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlm_dspy.inputs.files import Files
from rlm_dspy.inputs.tables import KINDS, Table
from rlm_dspy.inputs.text import Text
from rlm_dspy.text import expanded

if TYPE_CHECKING:
    from pathlib import Path

_LOOKED_AT_BYTES = 8_000
_CUT_WITHIN = 4


def opened(path: Path) -> Text | Files | Table:
    """Return the input for a path: `Files` for a folder, `Table` for a table by its suffix, else `Text`.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If it is another kind of file.
        OSError: If it cannot be read.
    """
    path = expanded(path)
    if path.is_dir():
        return Files.open(path)
    if path.suffix.lower() in KINDS:
        return Table.open(path)
    text = Text.open(path)
    if text.path is None:  # of a document
        return text
    with text.reader() as file:
        head = file.read(_LOOKED_AT_BYTES)
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < _LOOKED_AT_BYTES - _CUT_WITHIN:
            raise ValueError(
                f"{path} is not UTF-8 text (byte 0x{head[error.start]:02x} at {error.start:,}). A path may name a "
                "text (Text.open), a folder (Files.open) or a table (Table.open); give an image as "
                "dspy.Image.from_path(path), another file as dspy.File.from_path(path), or bytes."
            ) from None
    return text
