"""What the tests share."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import dspy
import pytest
from hypothesis import settings

from rlm_dspy.embedded import pull_model
from rlm_dspy.embedded.model_cache import models_folder
from rlm_dspy.embedded.model_catalog import DEFAULT
from tests.playing import play_awaiting, play_blocking

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.playing import Play


USERS_MODELS = str(models_folder())
settings.register_profile("any machine", deadline=None)  # a busy machine fails no test
settings.load_profile("any machine")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run the whole suite in several processes, one more than there are processors: tests also wait.

    All tests of a file run in one process, so its fixtures are made once. Named files run in this process.
    """
    named = config.args_source is config.ArgsSource.ARGS or hasattr(config, "workerinput")
    options = config.option
    if config.pluginmanager.hasplugin("xdist") and options.numprocesses is None and not (named or options.usepdb):
        options.numprocesses, options.dist = min(8, 1 + (os.cpu_count() or 1)), "loadfile"
        options.loadscopereorder = "not long" in options.markexpr  # as xdist orders, or as below


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import the files that have no long test, where only those are asked for: that takes half a minute."""
    if config.getoption("markexpr") == "long" and collection_path.match("test_*.py"):
        return "mark.long" not in collection_path.read_text(encoding="utf-8") or None
    return None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked `by_hand` where that mark is not asked for, also of the long tests.

    The files of `tests/` itself come first: the longest tests are there, and none should run alone at the end.
    """
    if "by_hand" not in str(config.getoption("markexpr")):
        left_out = [item for item in items if item.get_closest_marker("by_hand")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
    tests, counts = config.rootpath / "tests", Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path.parent != tests, -counts[item.path]))


@pytest.fixture(scope="session", autouse=True)
def models_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Let no test choose a model that a developer has downloaded; yield the folder of those of the tests."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLM_DSPY_MODELS", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def _no_configuration_and_no_history() -> None:
    """Let no test read a developer's configuration file, or write to their history."""
    os.environ |= {"RLM_DSPY_CONFIG": os.devnull, "RLM_DSPY_HISTORY": "0"}


@pytest.fixture(scope="session")
def smollm2(models_of_the_tests: Path) -> Path:
    """Download SmolLM2 into the user's cache, unless it is there, and make it the one model of the tests."""
    return _linked("smollm2-135m", models_of_the_tests)


@pytest.fixture
def default_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Do the same with the model that is offered to users, for one test."""
    monkeypatch.setenv("RLM_DSPY_MODELS", str(tmp_path))
    return _linked(DEFAULT.name, tmp_path)


def _linked(model: str, folder: Path) -> Path:
    """Download a model into the user's cache, unless it is there, and link it in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLM_DSPY_MODELS", USERS_MODELS)
        path = pull_model(model)
    link = folder / path.name
    link.symlink_to(path)
    return link


@pytest.fixture(params=[play_blocking, play_awaiting], ids=["blocking", "awaiting"])
def play(request: pytest.FixtureRequest) -> Play:
    """Call a module in both of its ways: each fact holds for `rlm(...)` and for `await rlm.acall(...)`."""
    play: Play = request.param
    return play


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let no answer of DSPy's cache come from an earlier session, here or in processes that tests start."""
    folder = str(tmp_path_factory.mktemp("dspy_cache"))
    os.environ["DSPY_CACHEDIR"] = folder
    dspy.configure_cache(disk_cache_dir=folder)


@pytest.fixture(autouse=True)
def _lm_of_dspy_as_found() -> Iterator[None]:
    """Let no test leave an LM to the next one, as a program that is loaded and calls `dspy.configure` does."""
    before = dspy.settings.lm
    yield
    if dspy.settings.lm is not before:
        dspy.configure(lm=before)


@pytest.fixture(scope="session")
def mlflow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold the one store of all tests: making one takes seconds."""
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture
def store(mlflow_folder: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Log to an experiment of the test's own."""
    from tests.tracing.stores import logging_to  # noqa: PLC0415 (MLflow takes seconds)

    with logging_to(mlflow_folder, request.node.name) as store:
        yield store


@pytest.fixture(params=["blocking", "awaiting"])
def how(request: pytest.FixtureRequest) -> str:
    """Call a module, or await it: each fact holds for both."""
    return str(request.param)
