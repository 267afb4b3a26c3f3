"""The notebook among the examples is executed: what each of its cells shows. A scripted model plays in it."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import pytest

from tests.notebooks import NOTEBOOKS, executed

NOTEBOOK = NOTEBOOKS.parent / "in_a_notebook.ipynb"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Return the outputs of each cell, by its last line; the folder is `here`."""
    here = tmp_path_factory.mktemp("notebook")
    cells = [cell for cell in executed(NOTEBOOK, here).cells if cell.cell_type == "code"]
    return {cell.source.splitlines()[-1].strip(): cell.outputs for cell in cells} | {"here": [here]}


def pages(outputs: list[Any]) -> list[str]:
    """Return what a browser is given of the outputs of a cell."""
    return [output["data"]["text/html"] for output in outputs if "text/html" in output.get("data", {})]


@pytest.mark.long
def test_a_module_shows_what_it_is_made_of(shown: dict[str, list[Any]]) -> None:
    (page,) = pages(shown["rlm"])
    assert "context: str -&gt; words: int" in page


@pytest.mark.long
def test_a_run_has_one_display_of_progress_and_then_its_prediction(shown: dict[str, list[Any]]) -> None:
    progress, prediction = pages(shown["prediction"])
    assert "RLM 1: submitted (" in progress
    assert "submitted after 2 turns" in prediction
    assert "I look at the text first." in prediction


@pytest.mark.long
def test_a_plot_is_shown_in_the_prediction_and_in_the_report(shown: dict[str, list[Any]]) -> None:
    """The frame of the report holds the page that was written."""
    picture = '<img src="data:image/png;base64,'
    _, prediction = pages(shown["plotted"])
    (frame,) = pages(shown['plotted.report("run.html")'])
    written = Path(shown["here"][0], "run.html").read_text(encoding="utf-8")
    assert picture in prediction
    assert picture in written
    assert f'<iframe srcdoc="{html.escape(written)}"' in frame


@pytest.mark.long
def test_an_interrupt_shows_the_partial_run_and_no_traceback(shown: dict[str, list[Any]]) -> None:
    outputs = shown['rlm(context="to be or not to be")']
    progress, prediction = pages(outputs)
    assert "RLM 3: interrupted (" in progress
    assert "interrupted after 1 turn" in prediction
    assert "words = context.split()" in prediction
    (error,) = [output for output in outputs if output.output_type == "error"]
    assert error.ename == "KeyboardInterrupt"
    assert len("\n".join(error.traceback).splitlines()) == 1
    (kept,) = shown['sys.last_value.prediction.trajectory[0]["output"]']
    assert "6 ['to', 'be', 'or']" in kept["data"]["text/plain"]


@pytest.mark.long
def test_several_runs_share_one_display(shown: dict[str, list[Any]]) -> None:
    (progress,) = pages(shown["[prediction.words for prediction in answers]"])
    assert "6 of 6 runs have ended" in progress
