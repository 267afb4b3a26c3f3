"""The command `rlm-dspy optimize program.py --train data.jsonl`."""

from __future__ import annotations

import contextlib
import inspect
import logging
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlm_dspy.cli.errors import (
    ANSWERED,
    FAILED,
    UNANSWERED,
    check_distinct,
    check_writable,
    done,
    errors_as_lines,
    quiet_dspy,
    say,
    tell,
)
from rlm_dspy.cli.options import traced
from rlm_dspy.cli.program import input_names, labelled, labels_equal, load_metric, load_program, program_file
from rlm_dspy.errors import UsageError
from rlm_dspy.text import write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping

    import dspy

    from rlm_dspy.optimize.forecast import Forecast
    from rlm_dspy.optimize.optimizer_catalog import Job, Named
    from rlm_dspy.optimize.promotion import Comparison
    from rlm_dspy.optimize.statistics import Judgement, Metric
    from rlm_dspy.optimize.traced_runs import Trace

_OPTIMIZERS = (
    "trajectories, labeled, bootstrap, random-search, mipro, mipro-zero-shot, gepa, simba, copro, infer-rules"
)
"""The names of `optimize.catalog`, which takes seconds to import."""
_SECONDS_BETWEEN_LINES = 2.0


def optimize(
    program: Annotated[
        str, typer.Argument(metavar="FILE.py[:NAME]", help="The program; NAME defaults to `program`.")
    ],
    train: Annotated[Path, typer.Option(help="Training examples, one JSON object per line.")],
    out: Annotated[Path, typer.Option(help="The policy file to write.")],
    dev: Annotated[Path | None, typer.Option(help="Examples to choose candidates on; default: --train.")] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(help="Held-out examples: the policy is written only if it does not score lower on them."),
    ] = None,
    optimizer: Annotated[str, typer.Option(help=f"One of {_OPTIMIZERS}.")] = "trajectories",
    metric: Annotated[
        str | None,
        typer.Option(help="A function in FILE.py; default `metric`, else equal labels."),
    ] = None,
    inputs: Annotated[
        str | None, typer.Option(help="The input fields, separated by commas; default: the program's.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="As for `ask`; default: the model that FILE.py configures.")
    ] = None,
    predictor: Annotated[
        str | None, typer.Option(help="The RLM's predictor to save, if there are several.")
    ] = None,
    state: Annotated[Path | None, typer.Option(help="Also save the whole program's state here, as JSON.")] = None,
    pilots: Annotated[int, typer.Option(min=1, help="Number of pilot runs for the forecast.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Number of parallel runs.")] = 1,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    log_dir: Annotated[Path | None, typer.Option(help="Folder of finished runs, to resume after a kill.")] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Log forecast, candidates, scores, prompts and policy to MLflow.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask for confirmation after the forecast.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Optimize a program that contains an RLM, and save the result as a policy.

    A few pilot runs come first; the command forecasts the cost before it starts.

    \b
    For example:
      rlm-dspy optimize program.py --train train.jsonl --held-out test.jsonl --out mine.json
      rlm-dspy ask "..." FILE --policy mine.json

    \b
    After a kill, the same command with the same --log-dir resumes: trajectories skips finished runs, gepa
    continues from its last candidate; the others run again, with paid replies taken from DSPy's cache.
    """  # noqa: D301 (\b keeps the line breaks)
    kept = f"Finished runs are kept in {log_dir}." if log_dir else "Finished runs are kept with --log-dir only."
    interrupted = [f"Interrupted. {kept}"]
    with errors_as_lines(debug=debug, interrupted=lambda: interrupted[-1]), quiet_dspy():
        import dspy

        from rlm_dspy.models import choose_model
        from rlm_dspy.optimize import read_examples
        from rlm_dspy.optimize.optimizer_catalog import Job

        named = _optimizer(optimizer)
        module, found = load_program(program)
        lm = choose_model(model) if model or dspy.settings.lm is None else dspy.settings.lm
        judge = Counted(load_metric(module, metric))
        fields = [name.strip() for name in inputs.split(",")] if inputs else input_names(found)
        files = [path for path in (train, dev, held_out) if path]
        data = {path: read_examples(path, fields) for path in files}
        if judge.metric is labels_equal:
            data = {path: labelled(examples, found, path.name) for path, examples in data.items()}
        judged_on, final = data[dev or train], data[held_out] if held_out else []
        job = Job(found, data[train], judged_on, judge, lm, threads, seed, log_dir)
        _check_log_dir(log_dir, named, job, optimizer)
        before = _before_it_starts(job, final, out, predictor)
        check_writable(state, "--state")
        check_distinct({"--out": out, "--state": state}, [*files, program_file(program)])
        about = {
            "name": out.stem,
            "predictor": predictor,
            "optimizer": optimizer,
            "data": f"{train.name}, {len(job.train)} examples",
            "seeds": [seed],
        }
        log = _log_to_mlflow if trace else _log_nowhere
        with traced(f"optimize {out.stem}") if trace else contextlib.nullcontext():
            with dspy.context(lm=lm), _shown():
                runs = named.runs(job) + 2 * len(final or job.dev)
                cast = _ask_to_go_on(job, runs, pilots, yes=yes)
                log({**about, "model": lm.model}, cast=cast, prompts={"before": _prompts(found)})
                judge.of = runs
                compiled = named.compile(job)
                saved = state is None or done(lambda: _save_state(compiled, state), f"The state is in {state}.")
                decision = _keep(job, compiled, before, final, out, about)
            say(decision.text)  # before the wait for MLflow
            interrupted.append("Interrupted after the optimization ended, before everything was logged.")
            policy = out if decision.written else None
            log({}, prompts={"after": _prompts(compiled)}, compared=decision.comparison, policy=policy)
    raise typer.Exit(FAILED if not saved else ANSWERED if decision.written else UNANSWERED)


def _log_nowhere(about: Mapping[str, Any], **_: Any) -> None:
    """Log nothing."""


def _log_to_mlflow(about: Mapping[str, Any], **found: Any) -> None:
    from rlm_dspy.tracing import log_compile

    log_compile(about, **found)


def _save_state(program: dspy.Module, path: Path) -> None:
    """Write the state of a program as JSON, whole or not at all."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "state.json"
        program.save(str(copy))
        write_whole(copy.read_text(encoding="utf-8"), path)


def _prompts(program: dspy.Module) -> dict[str, Any]:
    """Return the instructions and demos of each predictor."""
    states = {name: predictor.dump_state() for name, predictor in program.named_predictors()}
    return {
        name: {"instructions": state["signature"]["instructions"], "demos": state["demos"]}
        for name, state in states.items()
    }


def _optimizer(name: str) -> Named:
    from rlm_dspy.optimize.optimizer_catalog import OPTIMIZERS

    if name not in OPTIMIZERS:
        raise UsageError(f"Unknown optimizer {name!r}; choose one of {', '.join(OPTIMIZERS)}.")
    return OPTIMIZERS[name]


class Counted:
    """A metric that reports the progress of a compile: every run ends with a call of the metric.

    Args:
        metric: The metric.
    """

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.of = 0
        self.__wrapped__ = metric
        self._count, self._sum, self._started = 0, 0.0, time.monotonic()
        self._told, self._lock = 0.0, threading.Lock()
        self.__qualname__ = getattr(metric, "__qualname__", "metric")

    def __call__(
        self, example: dspy.Example, prediction: dspy.Prediction, trace: Trace = None, *_: Any
    ) -> Judgement:
        """Score a prediction and report progress."""
        from rlm_dspy.optimize.statistics import score_of

        judged = self.metric(example, prediction, trace)
        if self.of:
            with self._lock:
                self._count, self._sum = self._count + 1, self._sum + score_of(judged)
                now = time.monotonic()
                if now - self._told > _SECONDS_BETWEEN_LINES:
                    self._told = now
                    tell(f"{self._count} of at most {self.of} runs, mean score {self._sum / self._count:.2f}")
        return judged


@contextlib.contextmanager
def _shown() -> Any:
    """Send the reports of DSPy's optimizers to standard error; standard output is for the result."""
    logger = logging.getLogger("dspy.teleprompt")
    before = logger.level
    logger.setLevel(logging.INFO)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(before)


def _ask_to_go_on(job: Job, runs: int, pilots: int, *, yes: bool) -> Forecast:
    from rlm_dspy.optimize.forecast import forecast, pilot, told

    tried = pilot(job.program, job.dev[:pilots], job.metric)
    if outside := [one.score for one in tried if not 0 <= one.score <= 1]:
        raise UsageError(f"The metric returned {outside[0]:g}; it must return scores between 0 and 1.")
    cast = forecast(tried, runs, threads=job.threads, seed=job.seed)
    tell(told(cast, tried))
    if yes:
        return cast
    if not sys.stdin.isatty():
        raise UsageError("Cannot ask for confirmation: standard input is not a terminal. Pass --yes.")
    typer.confirm("Continue?", default=True, abort=True, err=True)
    return cast


def _check_log_dir(folder: Path | None, named: Named, job: Job, optimizer: str) -> None:
    """Check that a folder of finished runs belongs to this job; GEPA would resume another job's candidates."""
    from rlm_dspy.optimize.rollouts import key_of

    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--log-dir {folder}: cannot create the folder: {error}") from error
    mine = key_of(job.program, job.lm, optimizer, inspect.unwrap(job.metric), *job.train, *job.dev)
    path = folder / "job.txt"
    if path.exists() and path.read_text(encoding="utf-8") != mine and not named.tells_jobs_apart:
        raise UsageError(
            f"--log-dir {folder} belongs to another job (program, data, metric, model, optimizer); name another "
            "folder."
        )
    path.write_text(mine, encoding="utf-8")


def _before_it_starts(job: Job, held_out: list[dspy.Example], out: Path, predictor: str | None) -> dspy.Module:
    """Check everything that can be checked without a model call; return the program to compare with.

    If a policy exists at `out`, that is the program with this policy: no policy is replaced by a worse one.
    """
    from rlm_dspy.optimize import with_policy
    from rlm_dspy.optimize.policies import act_of
    from rlm_dspy.optimize.promotion import check_held_out

    act_of(job.program, predictor)
    if held_out:
        check_held_out(held_out, [*job.train, *job.dev], min_examples=1)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out}: cannot create its folder: {error}") from error
    check_writable(out, "--out")
    if not out.exists():
        return job.program
    if not held_out:
        raise UsageError(f"--out {out} already exists; pass --held-out to compare with it, or another --out.")
    tell(f"{out} already exists; the new policy replaces it only if it does not score lower.")
    return with_policy(job.program, out)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The decision on a new policy.

    Attributes:
        written: Whether it was written.
        comparison: The scores of the program with it and without it.
        text: Both in words.
    """

    written: bool
    comparison: Comparison
    text: str


def _keep(
    job: Job,
    compiled: dspy.Module,
    before: dspy.Module,
    held_out: list[dspy.Example],
    out: Path,
    about: Mapping[str, Any],
) -> Decision:
    """Write the policy if it is not worse."""
    from rlm_dspy.optimize import compare, promote, save_policy

    if held_out:
        seen = [*job.train, *job.dev]
        options: dict[str, Any] = {"seen": seen, "num_threads": job.threads, "min_examples": 1}
        compared = promote(compiled, before, held_out, job.metric, path=out, **options, **about)
        return Decision(written=compared.not_worse, comparison=compared, text=compared.reason)
    compared = compare(compiled, before, job.dev, job.metric, num_threads=job.threads)
    if compared.difference < 0 or not any(compared.candidate):
        said = f"Not written: on the examples that candidates were judged on it scored {compared.seen}."
        return Decision(written=False, comparison=compared, text=said)
    scores = {"dev (candidates were judged on it)": compared.candidate, "dev before": compared.incumbent}
    save_policy(compiled, out, scores=scores, **about)
    said = f"Written without held-out examples. Those that candidates were judged on: {compared.seen}."
    return Decision(written=True, comparison=compared, text=said)
