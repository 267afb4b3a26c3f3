"""`batch.run` on executors of other libraries. Dask and Ray are tested where they are installed.

    pip install distributed "ray>=2.60"; pytest -m long -n 0 tests/batch/test_engines.py

Ray starts on an idle machine only: it gives up if its agents do not start within seconds.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import dspy
import pytest
from joblib.externals.loky import ProcessPoolExecutor as LokyExecutor

from rlm_dspy import batch
from tests.batch.counting import CountingLM, examples, program

if TYPE_CHECKING:
    from pathlib import Path


def run_with_a_kill(executor: Any, folder: Path) -> None:
    """Run examples of which one kills its worker, once; check that nothing is lost and little is paid twice."""
    (folder / "requests").mkdir()
    (folder / "bullet").touch()
    lm = CountingLM(folder / "requests", seconds=0.05, kill="number: int, 5")
    with dspy.context(lm=lm):
        rows = list(batch.run(program(), examples(12), executor, folder / "runs"))
    assert sorted((row.index, row.error, row.prediction.words) for row in rows) == [
        (n, "", 20_000 + n) for n in range(12)
    ]
    # A worker that is ended has one run under way, and one whose result may not have come home.
    assert 12 < lm.requests <= 12 + 2 * 2


@pytest.mark.long
def test_loky_loses_no_result_when_a_worker_is_killed(tmp_path: Path) -> None:
    """It drops all its work then; the executor is made again."""
    run_with_a_kill(lambda: LokyExecutor(2), tmp_path)


@pytest.mark.long
def test_dask_loses_no_result_when_a_worker_is_killed(tmp_path: Path) -> None:
    """It runs the task again on a new worker."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        run_with_a_kill(client.get_executor(pure=False), tmp_path)


@pytest.mark.long
def test_ray_loses_no_result_when_a_worker_is_killed(tmp_path: Path) -> None:
    """It runs the task again on a new worker."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", logging_level="warning")
    try:
        run_with_a_kill("ray", tmp_path)
    finally:
        ray.shutdown()


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'dspy-recursive-lm\[ray\]'"):
        list(batch.run(program(), examples(1), "ray", tmp_path))
