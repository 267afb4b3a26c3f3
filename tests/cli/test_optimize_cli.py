"""`rlm-dspy optimize`: a program from a file, a forecast, progress, and a policy that is not worse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dspy
import mlflow
import pytest
from typer.testing import CliRunner

from rlm_dspy import RLM, SubCallCache, Text
from rlm_dspy.cli.app import app
from rlm_dspy.cli.optimize import _log_to_mlflow
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.optimize import compact
from rlm_dspy.optimize.forecast import Pilot, describe_forecast, forecast
from rlm_dspy.optimize.optimizer_catalog import OPTIMIZERS, Job
from rlm_dspy.testing import ScriptedLM
from tests.cli.optimizing import PROGRAM, optimize, program_folder  # noqa: F401  # a fixture
from tests.optimize.matrix_programs import ADVICE, PROGRAMS, ScriptedActor, exact, examples
from tests.playing import begins

pytestmark = pytest.mark.usefixtures("program_folder")


def test_a_policy_is_found_judged_and_written() -> None:
    """With a forecast before, and the comparison on held-out examples in the file."""
    done = optimize("--held-out", "test.jsonl", "--yes", "--state", "state.json")
    assert done.exit_code == 0, done.output
    assert "3 pilot runs scored" in done.stderr
    assert "At most 64 runs:" in done.stderr, "4 to compile, and both programs on 30 examples"
    assert done.stdout.startswith("Promoted: +0.5")
    provenance = json.loads(Path("mine.json").read_text())["provenance"]
    assert provenance["optimizer"] == "trajectories"
    assert provenance["data"] == "train.jsonl, 4 examples"
    assert provenance["scores"]["held out"]["mean"] == 1.0
    assert RLM("question -> answer", policy="mine.json").act.demos
    program = PROGRAMS["root and query"]()
    program.load("state.json")
    assert program.act.demos


SCRIPTED_PROGRAM = """
import dspy
from rlm_dspy import RLM, Limits
from rlm_dspy.interpreters import LocalPythonInterpreter
from tests.optimize.matrix_programs import ScriptedActor

dspy.configure(lm=ScriptedActor(), interpreter_factory=LocalPythonInterpreter)
program = RLM("context, question -> answer", limits=Limits(max_iters=4, max_llm_calls=8), policy=None)
"""


@pytest.mark.long
def test_with_trace_mlflow_has_forecast_scores_prompts_and_policy() -> None:
    """In one run, which a person finds by the policy's name. In a process of its own: MLflow's settings stay."""
    Path("scripted.py").write_text(SCRIPTED_PROGRAM)
    command = [sys.executable, "-m", "rlm_dspy", "optimize", "scripted.py", "--train", "train.jsonl", "--yes"]
    Path("few.jsonl").write_text("".join(Path("test.jsonl").read_text().splitlines(keepends=True)[:8]))
    command += ["--held-out", "few.jsonl", "--out", "mine.json", "--trace"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Logged to MLflow" in done.stderr
    client = mlflow.MlflowClient("sqlite:///mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'rlm-dspy'")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    run = runs["optimize mine"]
    assert run.data.params["optimizer"] == "trajectories"
    assert run.data.metrics["score_after"] == 1.0
    assert run.data.metrics["score_before"] < 1.0
    assert run.data.metrics["forecast_tokens_p95"] >= run.data.metrics["forecast_tokens_p50"] > 0
    assert run.data.tags["decision"].startswith("Promoted: +")
    files = {file.path for folder in ("", "prompts") for file in client.list_artifacts(run.info.run_id, folder)}
    assert {"mine.json", "prompts/before.json", "prompts/after.json"} <= files


def test_a_store_that_goes_away_ends_no_optimization(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its pilots and its policy are paid for; the port is one on which nothing listens."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(mlflow, "active_run", object)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    try:
        _log_to_mlflow({"optimizer": "trajectories"})
    finally:
        mlflow.set_tracking_uri(before)
    assert (
        "Error: not logged to MLflow: MlflowException: API request to http://127.0.0.1:9"
        in capsys.readouterr().err
    )


def test_a_program_that_no_optimizer_would_change_is_refused_before_anything_is_paid() -> None:
    """The RLM in it was compiled before."""
    Path("program.py").write_text(
        "import dspy\nfrom rlm_dspy import RLM\n"
        "program = dspy.Module()\nprogram.find = RLM('context, question -> answer')\n"
        "program.find._compiled = True\n"
    )
    lm = ScriptedActor()
    done = optimize("--inputs", "context,question", "--yes", lm=lm)
    assert done.exit_code == 2
    assert "Unfreeze it: program.find._compiled = False." in " ".join(done.stderr.split())
    assert not lm.script.calls


def test_what_is_not_better_is_not_written() -> None:
    """The exit code says so."""
    wrong = ScriptedLM(lambda _: "```python\nSUBMIT(answer='no' + context[:0])\n```")
    done = optimize("--held-out", "dev.jsonl", "--yes", lm=wrong)
    assert done.exit_code == 1
    assert done.stdout.startswith("Not promoted, it scored nothing")
    done = optimize("--held-out", "dev.jsonl", "--yes")
    assert done.stdout.startswith("Not promoted, it may be worse by 0.1: try more examples")
    assert not Path("mine.json").exists()
    assert "The policy that was found is in mine.not-promoted.json. It was not promoted." in done.stderr
    assert RLM("question -> answer", policy="mine.not-promoted.json").act.demos, "its runs were paid for"


class Misled(ScriptedActor):
    """Goes wrong where a prompt holds an optimizer's advice."""

    def _reply(self, messages: Any) -> str:
        misled = ADVICE in messages[0]["content"] and any(map(begins, messages))
        return "```python\nSUBMIT(answer='no' + context[:0])\n```" if misled else super()._reply(messages)


def test_a_policy_that_is_there_is_what_the_new_one_is_compared_with() -> None:
    """Against the program without it, a worse one would look like progress."""
    optimize("--held-out", "test.jsonl", "--yes")
    before = Path("mine.json").read_text()
    done = optimize("--held-out", "test.jsonl", "--yes", "--optimizer", "copro", lm=Misled())
    assert "mine.json already exists" in done.stderr
    assert done.stdout.startswith("Not promoted, it scored less"), done.output
    assert Path("mine.json").read_text() == before


def test_a_policy_that_is_there_is_not_replaced_without_held_out_examples() -> None:
    """Nothing is paid for either."""
    Path("mine.json").write_text("as it was")
    lm = ScriptedActor()
    done = optimize("--yes", lm=lm)
    assert (done.exit_code, lm.script.calls) == (2, [])
    assert "pass --held-out" in done.stderr
    assert Path("mine.json").read_text() == "as it was"


def test_without_held_out_examples_it_says_so() -> None:
    """The scores on the examples that candidates were judged on are kept, under a name that tells."""
    done = optimize("--dev", "dev.jsonl", "--yes")
    assert done.stdout.startswith("Written without held-out examples.")
    scores = json.loads(Path("mine.json").read_text())["provenance"]["scores"]
    assert set(scores) == {"dev (candidates were judged on it)", "dev before"}


def test_nobody_is_asked_without_a_terminal() -> None:
    """The message names the option."""
    done = optimize()
    assert done.exit_code == 2
    assert "--yes" in done.stderr


UNUSABLE = """

def bad(example, prediction, trace=None):
    return 5 if example.answer == "v3" else 1
"""


def test_a_policy_that_cannot_be_compared_is_kept_beside(tmp_path: Path) -> None:
    """Its runs were paid for."""
    Path("program.py").write_text(PROGRAM + UNUSABLE)
    done = optimize("--yes", "--pilots", "1", "--metric", "bad")
    assert done.exit_code == 2
    assert "The metric returned 5" in done.stderr
    assert "The policy that was found is in mine.not-compared.json. It was not compared." in done.stderr
    assert not Path("mine.json").exists()
    assert RLM("question -> answer", policy="mine.not-compared.json").act.demos


OWN_LM = """
from tests.optimize.matrix_programs import ScriptedActor

program.set_lm(ScriptedActor())
"""


def test_a_program_with_an_lm_that_cannot_be_saved_gives_a_policy_but_no_state() -> None:
    """A policy holds no LM; a state does, so it is refused before anything is paid."""
    Path("program.py").write_text(PROGRAM + OWN_LM)
    refused = optimize("--yes", "--state", "state.json")
    assert refused.exit_code == 2
    assert "--state state.json: engine=_Engine cannot be saved" in refused.stderr
    assert "pilot" not in refused.stderr
    done = optimize("--yes")
    assert done.exit_code == 0, done.output
    assert RLM("question -> answer", policy="mine.json").act.demos


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is a folder in which nothing can be written")
@pytest.mark.parametrize("option", ["--out", "--state"])
def test_a_file_that_cannot_be_written_is_told_before_the_pilots(option: str) -> None:
    lm = ScriptedActor()
    done = optimize("--yes", option, "/proc/it.json", lm=lm)
    assert done.exit_code == 2
    assert f"{option} /proc/it.json: it cannot be written" in done.stderr
    assert lm.script.calls == []


class Killed(ScriptedActor):
    """A scripted model whose process is interrupted at a call."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def _reply(self, messages: Any) -> str:
        if len(self.script.calls) == self.at:
            raise KeyboardInterrupt
        return super()._reply(messages)


def test_a_killed_compile_goes_on(tmp_path: Path) -> None:
    """Finished runs are not made again."""
    assert optimize("--yes", "--pilots", "1", "--log-dir", "log", lm=Killed(at=9)).exit_code == 130
    with SubCallCache("log/rollouts.sqlite") as finished:
        assert len(finished) >= 1
    lm = ScriptedActor()
    assert optimize("--yes", "--pilots", "1", "--log-dir", "log", lm=lm).exit_code == 0
    with SubCallCache("log/rollouts.sqlite") as finished:
        assert len(finished) == 4


def test_the_help_names_every_optimizer() -> None:
    told = "".join(CliRunner().invoke(app, ["optimize", "--help"]).stdout.split())  # lines break at hyphens
    assert f"Oneof{','.join(OPTIMIZERS)}." in told


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_named_optimizer_compiles_within_its_count(name: str) -> None:
    """At most as many runs as the forecast is for, on a program with two predictors."""
    lm = ScriptedActor()
    job = Job(PROGRAMS["root and query"](), examples(4), 2 * examples(2, first=10), exact, lm)
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
        compiled = OPTIMIZERS[name].compile(job)
        ran = sum(lm.runs.values())
        assert compiled(**examples(1, first=51)[0].inputs()).answer
    assert ran <= OPTIMIZERS[name].runs(job)


def test_a_forecast_of_even_pilots_is_their_mean_and_of_uneven_ones_wider() -> None:
    """Median and 95th percentile of the total."""
    even = forecast([Pilot(2.0, 100, 0.5, 1.0)] * 3, 10, threads=2)
    assert (even.tokens, even.cost, even.seconds) == ((1_000, 1_000), (5.0, 5.0), (10.0, 10.0))
    uneven = forecast([Pilot(1.0, 10, None, 1.0), Pilot(3.0, 190, None, 0.0)], 10)
    assert uneven.cost is None
    assert uneven.tokens[0] < uneven.tokens[1]
    assert "cost unknown" in describe_forecast(uneven, [Pilot(1.0, 10, None, 1.0)])
    with pytest.raises(ValueError, match="at least one"):
        forecast([], 10)


def test_a_pilot_that_fails_is_left_out_and_if_all_do_the_error_is_told() -> None:
    """Optimizers go on too."""
    replies = [dspy.LMError("down"), *["```python\nSUBMIT(answer='v1')\n```"] * 9]
    assert "1 pilot runs scored 1" in optimize("--yes", "--pilots", "2", lm=ScriptedLM(replies)).stderr
    Path("mine.json").unlink(missing_ok=True)
    done = optimize("--yes", lm=ScriptedLM(lambda _: dspy.LMError("down")))
    assert done.exit_code == 3
    assert "Error: down" in done.stderr


def test_an_interrupt_says_what_is_kept() -> None:
    """And where."""
    assert "with --log-dir only" in optimize("--yes", lm=Killed(at=2)).stderr
    assert "Finished runs are kept in log." in optimize("--yes", "--log-dir", "log", lm=Killed(at=2)).stderr
    of_another = optimize("--yes", "--log-dir", "other", "--optimizer", "bootstrap", lm=Killed(at=2))
    assert (
        "Interrupted. The same command takes the replies that were paid for from DSPy's cache."
        in of_another.stderr
    )


def test_long_labels_reach_a_metric_as_they_are() -> None:
    """Only inputs are wrapped."""
    (read,) = compact([dspy.Example(context="c" * 3_000, answer="a" * 3_000).with_inputs("context")])
    assert isinstance(read.context, Text)
    assert read.answer.upper() == "A" * 3_000
