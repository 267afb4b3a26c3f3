"""Starts a job: `python -I start.py`, by `run_isolated`. Its settings are in an environment variable.

Packages are imported by folder, because a module of the user may have the same name on the host's path.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys


def load_package(name: str, folder: str) -> None:
    """Import the package in a folder under a name."""
    file = os.path.join(folder, "__init__.py")  # noqa: PTH118 (pathlib takes a tenth of a second)
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=[folder])
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


if __name__ == "__main__":
    settings = json.loads(os.environ["SETTINGS"])
    sys.path[:] = settings["path"]
    load_package("_rlm_confinement", settings["confinement"])
    load_package("_rlm_isolated", os.path.dirname(__file__))  # noqa: PTH120
    importlib.import_module("_rlm_isolated.job").run(settings)
