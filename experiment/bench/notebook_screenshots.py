"""Take pictures of the executed notebook and of the report in it, in `experiment/screenshots/`.

    uv run --with nbconvert --with pillow --with playwright python experiment/bench/notebook_screenshots.py

Opens `in_a_notebook.ipynb`, as it is stored, in Chromium (`apt-get install chromium`).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from trace_screenshots import SCREENSHOTS, page_of  # a script of this folder

NOTEBOOK = Path(__file__).parents[1] / "in_a_notebook.ipynb"


def main(browser: Annotated[str, typer.Option(help="Where Chromium is.")] = "/usr/bin/chromium") -> None:
    """Take the pictures."""
    with tempfile.TemporaryDirectory() as folder, page_of(browser) as page:
        command = [sys.executable, "-m", "nbconvert", "--to", "html", "--output-dir", folder, str(NOTEBOOK)]
        subprocess.run(command, check=True)
        page.set_viewport_size({"width": 960, "height": 3_800})  # whole: a frame out of sight is not drawn
        page.goto(f"file://{folder}/{NOTEBOOK.stem}.html", wait_until="domcontentloaded")
        page.wait_for_timeout(2_000)
        page.locator("main").screenshot(path=SCREENSHOTS / "notebook.png")
        report = page.frame_locator("iframe").locator("html").evaluate("html => html.outerHTML")
        page.set_viewport_size({"width": 960, "height": 900})
        page.set_content(report)
        page.screenshot(path=SCREENSHOTS / "report-plot.png")
    for name in ("notebook.png", "report-plot.png"):
        Image.open(SCREENSHOTS / name).quantize(256).save(SCREENSHOTS / name, optimize=True)


if __name__ == "__main__":
    typer.run(main)
