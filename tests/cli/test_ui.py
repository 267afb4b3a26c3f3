"""Which store `rlm-dspy ui` serves."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlm_dspy.cli.app import app
from rlm_dspy.cli.user.last_store import remember_store
from rlm_dspy.cli.user.ui import found_store


@pytest.fixture(autouse=True)
def _nobody_has_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def test_without_a_store_it_says_where_it_looked_and_creates_none() -> None:
    result = CliRunner().invoke(app, ["ui"])
    assert result.exit_code == 2
    assert f"MLFLOW_TRACKING_URI is not set, {Path('mlflow.db').absolute()} does not exist" in result.stderr
    assert "--store sqlite:///PATH/mlflow.db" in result.stderr
    assert list(Path().iterdir()) == []


def test_the_store_is_of_the_environment_or_of_this_folder_or_of_the_last_traced_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mlflow.db").touch()
    remember_store("sqlite:///mlflow.db")
    remember_store("https://user:password@mlflow.example")
    monkeypatch.chdir(tmp_path / "here")
    assert found_store() == f"sqlite:///{tmp_path / 'mlflow.db'}"
    Path("mlflow.db").touch()
    assert found_store() == "sqlite:///mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    assert found_store() == "http://localhost:5000"


@pytest.mark.parametrize(
    ("store", "said"),
    [
        ("sqlite:///none.db", "none.db does not exist. Correct the path, or log a run with"),
        ("sqlite:///rows.csv", "Invalid store 'sqlite:///rows.csv'"),
        ("none.db", "Invalid store 'none.db': name a database file as 'sqlite:///none.db'"),
        ("nobody://x", "Invalid store 'nobody://x'"),
    ],
)
def test_a_store_that_cannot_be_opened_starts_no_server(store: str, said: str) -> None:
    """And nothing is created in its place."""
    Path("rows.csv").write_text("a,b\n")
    result = CliRunner().invoke(app, ["ui", "--store", store])
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert [path.name for path in Path().iterdir()] == ["rows.csv"]
