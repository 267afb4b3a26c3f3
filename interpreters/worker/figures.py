"""The backend of matplotlib in a worker: `plt.show()` saves the figures below `output/` and says where.

Loaded before matplotlib is, which it imports when a figure is made. The standard library only.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any


def __getattr__(name: str) -> Any:
    """Return the attributes that matplotlib expects of a backend, from its own backend for pictures."""
    if name == "FigureCanvas":
        globals()[name] = importlib.import_module("matplotlib.backends.backend_agg").FigureCanvasAgg
        return globals()[name]  # matplotlib also reads the names of the module
    raise AttributeError(name)


def show(*_: object, **__: object) -> None:
    """Save each open figure as `output/figure-N.png` and close it, as a notebook does."""
    pyplot: Any = sys.modules["matplotlib.pyplot"]
    folder = Path(os.environ["HOME"], "output")
    folder.mkdir(exist_ok=True)
    taken = 0
    for number in pyplot.get_fignums():
        figure = pyplot.figure(number)
        while (path := folder / f"figure-{(taken := taken + 1)}.png").exists():
            pass
        figure.savefig(path)
        pyplot.close(figure)
        print(f"Figure saved as output/{path.name}")  # noqa: T201 (as code's own output)
