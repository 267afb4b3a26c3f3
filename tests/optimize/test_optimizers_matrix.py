"""Every optimizer of DSPy on programs with an RLM inside; `study/optimizer_matrix.py` prints the matrix."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest

from tests.optimize.matrix_checks import CHECKS, Compiled, compiled, it_is_saved_and_loaded, prompts_stay_small
from tests.optimize.matrix_optimizers import OPTIMIZERS
from tests.optimize.matrix_programs import PROGRAMS

if TYPE_CHECKING:
    from pathlib import Path

once = functools.cache(compiled)
QUICK = ("root and query", "two RLMs")
"""The programs that are not left for the long tests."""
every_program = pytest.mark.parametrize(
    "program", [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in PROGRAMS]
)


@every_program
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("check", CHECKS)
def test_an_optimized_program(check: str, optimizer: str, program: str) -> None:
    """It answers, keeps the protocol, tried every predictor, and sends what it learned."""
    it: Compiled = once(optimizer, program)
    assert CHECKS[check](it)


@every_program
@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name != "KNNFewShot"])
def test_a_saved_state_gives_the_same_prompts(optimizer: str, program: str, tmp_path: Path) -> None:
    """In a new program of the same form. What KNNFewShot makes has no state: it compiles at each call."""
    assert it_is_saved_and_loaded(once(optimizer, program), tmp_path)


@pytest.mark.parametrize("as_text", [True, pytest.param(False, marks=pytest.mark.long)], ids=["Text", "str"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_prompt_holds_a_context_of_ten_megabytes(optimizer: str, as_text: bool) -> None:
    """Given as `Text`, or as `str` in a dataset that `compact` wrapped."""
    assert prompts_stay_small(optimizer, "root and query", as_text=as_text)
