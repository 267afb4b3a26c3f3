"""What the tests of batches share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.batch.counting import CountingLM

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def lm(tmp_path: Path) -> CountingLM:
    """Return an LM that counts its requests across processes."""
    (tmp_path / "requests").mkdir()
    return CountingLM(tmp_path / "requests")
