"""Makes the matrix of optimizers: what was checked of each on each program, by the functions that the tests run.

    uv run python experiment/study/optimizer_matrix.py            # all, and OPTIMIZERS.md
    uv run python experiment/study/optimizer_matrix.py GEPA       # printed only

Everything is scripted: no model, no network. About two minutes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.optimize import matrix_checks as matrix
from tests.optimize.matrix_optimizers import OPTIMIZERS
from tests.optimize.matrix_programs import PROGRAMS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPORT = Path(__file__).parent / "OPTIMIZERS.md"
HEAD = """# Every optimizer on programs with an RLM inside

Made by `experiment/study/optimizer_matrix.py`, which runs what `tests/optimize/test_optimizers_matrix.py` runs.
Scripted models: it shows that the mechanics work, not how much an optimizer helps. The data of BootstrapFinetune
is checked in `tests/test_finetune.py`, what is repaired in DSPy's optimizers in `tests/test_upstream.py`.
"""
LONG_PROGRAM = "root and query"
COLUMNS = [
    "optimizer",
    "program",
    *matrix.CHECKS,
    "saved and loaded, bytes",
    "longest prompt of a compile with 10 MB contexts",
    "CPU s",
]


def row(optimizer: str, program: str, folder: Path) -> list[str]:
    """Return the cells of one optimizer on one program; a check that fails says FAILED and why."""
    started = time.process_time()
    it = matrix.compiled(optimizer, program)
    seconds = time.process_time() - started
    cells = [cell(lambda check=check: check(it)) for check in matrix.CHECKS.values()]  # type: ignore[misc]
    stateless = "no state: compiles at each call"
    cells.append(
        stateless if optimizer == "KNNFewShot" else cell(lambda: matrix.it_is_saved_and_loaded(it, folder))
    )
    long = (
        cell(lambda: matrix.prompts_stay_small(optimizer, program, as_text=True))
        if program == LONG_PROGRAM
        else ""
    )
    return [optimizer, program, *cells, long, f"{seconds:.1f}"]


def cell(check: Callable[[], str]) -> str:
    """Return what a check saw."""
    try:
        return check()
    except AssertionError as failed:
        return f"FAILED: {str(failed)[:200]}"


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep progress bars and logs of the optimizers away."""
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def main(
    only: Annotated[list[str] | None, typer.Argument(help="Names of optimizers; all by default.")] = None,
) -> None:
    """Print the matrix as a Markdown table, row by row; write it if it is whole."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    print(*lines, sep="\n", flush=True)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for optimizer in only or OPTIMIZERS:
            for program in PROGRAMS:
                with quietly():
                    cells = row(optimizer, program, Path(folder))
                failed += any(text.startswith("FAILED") for text in cells)
                lines.append("| " + " | ".join(cells) + " |")
                print(lines[-1], flush=True)
    if not only:
        REPORT.write_text("\n".join([HEAD, *lines]) + "\n", encoding="utf-8")
    raise typer.Exit(bool(failed))


if __name__ == "__main__":
    typer.run(main)
