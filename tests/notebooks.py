"""Executes notebooks. `python -m tests.notebooks FILE ...` stores their outputs anew."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbclient
import nbformat

NOTEBOOKS = Path(__file__).resolve().parent.parent / "experiment" / "notebooks"


def stored(path: Path) -> Any:
    """Return a notebook as it lies in its file."""
    return nbformat.read(path, as_version=4)


def executed(path: Path, folder: Path | None = None) -> Any:
    """Return a notebook with the outputs of a new execution, in its folder or another; logs are left out."""
    notebook = stored(path)
    where = {"metadata": {"path": str(folder or path.parent)}}
    nbclient.NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources=where, record_timing=False
    ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def printed(notebook: Any) -> list[str]:
    """Return what each code cell prints and gives, without displays."""
    return ["".join(map(_text, cell.outputs)) for cell in notebook.cells if cell.cell_type == "code"]


def _text(output: Any) -> str:
    if output.output_type == "stream":
        return str(output.text)
    return str(output.data["text/plain"]) if output.output_type == "execute_result" else ""


if __name__ == "__main__":
    for name in sys.argv[1:]:
        nbformat.write(executed(Path(name)), name)
