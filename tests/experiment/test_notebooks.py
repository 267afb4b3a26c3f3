"""The notebooks run, and show what a reader gets."""

from __future__ import annotations

import pytest

from tests.notebooks import NOTEBOOKS, executed, printed, stored


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")))
def test_a_notebook_runs_and_prints_what_is_stored_in_it(name: str) -> None:
    """After a change: `python -m tests.notebooks experiment/notebooks/NAME.ipynb`."""
    path = NOTEBOOKS / f"{name}.ipynb"
    assert printed(executed(path)) == printed(stored(path))
