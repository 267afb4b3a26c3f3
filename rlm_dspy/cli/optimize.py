"""The command `rlm-dspy optimize program.py --train data.jsonl`."""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from rlm_dspy.cli.errors import (
    ANSWERED,
    FAILED,
    UNANSWERED,
    check_outputs,
    done,
    errors_as_lines,
    logging_at,
    quiet_dspy,
    say,
    tell,
)
from rlm_dspy.cli.options import Debug, Trace, command, traced
from rlm_dspy.cli.program import (
    input_names,
    input_types,
    labelled,
    labels_equal,
    load_metric,
    load_program,
    optional_inputs,
    program_file,
)
from rlm_dspy.cli.user.completion import check_model, complete_model
from rlm_dspy.errors import UsageError
from rlm_dspy.text import write_whole

if TYPE_CHECKING:
    import dspy
    from pydantic import JsonValue

    from rlm_dspy.optimize.forecast import Forecast
    from rlm_dspy.optimize.optimizer_catalog import Job, Named
    from rlm_dspy.optimize.promotion import Comparison
    from rlm_dspy.optimize.statistics import Judgement, Metric
    from rlm_dspy.optimize.traced_runs import Trace as CallTrace

    About = dict[str, Any]

_OPTIMIZERS = (
    "trajectories, labeled, bootstrap, random-search, mipro, mipro-zero-shot, gepa, simba, copro, infer-rules"
)
"""The names of `optimize.optimizer_catalog`, which takes seconds to import."""
_RESUMING = ("trajectories", "gepa")
"""The optimizers that go on with what is in --log-dir."""
_SECONDS_BETWEEN_LINES = 2.0


@dataclass(frozen=True, kw_only=True)
class OptimizeOptions:
    """What `rlm-dspy optimize` is given."""

    program: Annotated[str, Argument(metavar="FILE.py[:NAME]", help="The program; NAME defaults to `program`.")]
    train: Annotated[Path, Option(help="Training examples, one JSON object per line.")]
    out: Annotated[Path, Option(help="The policy file to write.")]
    dev: Annotated[Path | None, Option(help="Examples to choose candidates on; default: --train.")] = None
    held_out: Annotated[Path | None, Option(help="Examples on which a policy must not score lower.")] = None
    optimizer: Annotated[str, Option(help=f"One of {_OPTIMIZERS}.")] = "trajectories"
    metric: Annotated[str | None, Option(help="A function in FILE.py; default `metric` or equal labels.")] = None
    inputs: Annotated[str | None, Option(help="The input fields, separated by commas.")] = None
    model: Annotated[
        str | None,
        Option(
            help="As for `ask`; default: the one that FILE.py configures.",
            autocompletion=complete_model,
            callback=check_model,
        ),
    ] = None
    predictor: Annotated[str | None, Option(help="The RLM's predictor to save, if there are several.")] = None
    state: Annotated[Path | None, Option(help="Also save the whole program's state here, as JSON.")] = None
    pilots: Annotated[int, Option(min=1, help="Number of pilot runs for the forecast.")] = 3
    threads: Annotated[int, Option(min=1, help="Number of parallel runs.")] = 1
    seed: Annotated[int, Option(help="Random seed.")] = 0
    log_dir: Annotated[Path | None, Option(help="Folder of finished runs, to resume after a kill.")] = None
    trace: Trace = False
    yes: Annotated[bool, Option("--yes", "-y", help="Do not ask for confirmation after the forecast.")] = False
    debug: Debug = False


@command
def optimize(options: OptimizeOptions) -> None:
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
    interrupted = [f"Interrupted. {_kept_of_runs(options)}"]
    out = options.out
    with errors_as_lines(debug=options.debug, interrupted=lambda: interrupted[-1]), quiet_dspy():
        import dspy

        job, final = _prepared(options)
        before = _before_it_starts(job, final, options)
        about: About = {
            "name": out.stem,
            "predictor": options.predictor,
            "optimizer": options.optimizer,
            "data": f"{options.train.name}, {len(job.train)} examples",
            "seeds": [options.seed],
        }
        log = _log_to_mlflow if options.trace else lambda *_, **__: None
        with traced(f"optimize {out.stem}") if options.trace else contextlib.nullcontext():
            # The reports of DSPy's optimizers go to standard error; standard output is for the result.
            shown = logging_at("dspy.teleprompt", logging.INFO)
            with dspy.context(lm=job.lm), shown, contextlib.redirect_stdout(sys.stderr):
                cast = _ask_to_go_on(job, len(final), options)
                log({**about, "model": job.lm.model}, cast=cast, prompts={"before": _prompts(job.program)})
                job = replace(job, metric=Counted(job.metric, cast.runs))
                compiled = _optimizer(options.optimizer).compile(job)
                state = options.state
                saved = state is None or done(lambda: _save_state(compiled, state), f"The state is in {state}.")
                try:
                    written, compared, decision = _keep(job, compiled, before, final, out, about)
                except BaseException:
                    _keep_beside(compiled, out, "not-compared", about)
                    raise
            try:
                say(decision)  # before waiting for MLflow
            except OSError:  # its reader has closed the pipe
                tell(decision)
            interrupted.append("Interrupted after the optimization ended, before everything was logged.")
            after = {"after": _prompts(compiled)}
            log({}, prompts=after, compared=compared, policy=out if written else None)
    raise typer.Exit(FAILED if not saved else ANSWERED if written else UNANSWERED)


def _prepared(options: OptimizeOptions) -> tuple[Job, list[dspy.Example]]:
    """Load the program and the data; return the job and the held-out examples."""
    import dspy

    from rlm_dspy.cli.user.configuration import ModelSettings, load_configuration
    from rlm_dspy.models import choose_model
    from rlm_dspy.optimize import read_examples
    from rlm_dspy.optimize.optimizer_catalog import Job

    _optimizer(options.optimizer)
    module, program = load_program(options.program)
    configuration = load_configuration()
    name = options.model or (None if dspy.settings.lm else configuration.named(None))
    lm = choose_model(name, **configuration.settings(name, ModelSettings()).model_dump())
    metric = load_metric(module, options.metric)
    fields = [name.strip() for name in options.inputs.split(",")] if options.inputs else input_names(program)
    files = [path for path in (options.train, options.dev, options.held_out) if path]
    optional, types = optional_inputs(program), input_types(program)
    data = {path: read_examples(path, fields, optional, types) for path in files}
    if metric is labels_equal:
        data = {path: labelled(examples, program, path.name) for path, examples in data.items()}
    train, dev = data[options.train], data[options.dev or options.train]
    job = Job(program, train, dev, metric, lm, options.threads, options.seed, options.log_dir)
    return job, data[options.held_out] if options.held_out else []


def _log_to_mlflow(about: About, **found: Any) -> None:
    """Log to MLflow; a store that cannot take it loses no optimization."""
    from rlm_dspy.tracing import log_compile

    done(lambda: log_compile(about, **found), problem="not logged to MLflow: ")


def _save_state(program: dspy.Module, path: Path) -> None:
    """Write the state of a program as JSON, whole or not at all."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "state.json"
        program.save(str(copy))
        write_whole(copy.read_text(encoding="utf-8"), path)


def _prompts(program: dspy.Module) -> dict[str, dict[str, JsonValue]]:
    """Return the instructions and demos of each predictor."""
    from rlm_dspy.optimize.policy_provenance import learned_state

    return {
        name: {"instructions": predictor.signature.instructions, "demos": learned_state(predictor)["demos"]}
        for name, predictor in program.named_predictors()
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
        of: The maximum number of runs.
    """

    def __init__(self, metric: Metric, of: int) -> None:
        functools.update_wrapper(self, metric)
        self.metric, self.of = metric, of
        self._count, self._sum, self._reported, self._lock = 0, 0.0, 0.0, threading.Lock()
        self._warned = False

    def __getstate__(self) -> dict[str, Any]:
        """Pickle only the metric, which identifies it; counts do not."""
        return {"metric": self.metric}

    def __call__(
        self, example: dspy.Example, prediction: dspy.Prediction, trace: CallTrace = None, *_: Any
    ) -> Judgement:
        """Score a prediction and report progress."""
        from rlm_dspy.optimize.statistics import score_of

        judged = self.metric(example, prediction, trace)
        score = score_of(judged)
        with self._lock:
            if not 0 <= score <= 1 and not self._warned:
                self._warned = True
                tell(f"The metric returned {score:g}. Policies cannot be compared unless it returns 0 to 1.")
            self._count, self._sum = self._count + 1, self._sum + score
            now = time.monotonic()
            if now - self._reported > _SECONDS_BETWEEN_LINES:
                self._reported = now
                tell(f"{self._count} of at most {self.of} runs, mean score {self._sum / self._count:.2f}")
        return judged


def _ask_to_go_on(job: Job, held_out: int, options: OptimizeOptions) -> Forecast:
    from rlm_dspy.optimize.forecast import describe_forecast, forecast, pilot

    tried = pilot(job.program, job.dev[: options.pilots], job.metric)
    if outside := [one.score for one in tried if not 0 <= one.score <= 1]:
        raise UsageError(f"The metric returned {outside[0]:g}; it must return scores between 0 and 1.")
    runs = _optimizer(options.optimizer).runs(job) + 2 * (held_out or len(job.dev))
    cast = forecast(tried, runs, threads=job.threads, seed=job.seed)
    tell(describe_forecast(cast, tried))
    if not options.yes:
        if not sys.stdin.isatty():
            raise UsageError("Cannot ask for confirmation: standard input is not a terminal. Pass --yes.")
        typer.confirm("Continue?", default=True, abort=True, err=True)
    return cast


def _check_log_dir(folder: Path, job: Job, optimizer: str) -> None:
    """Check that a folder of finished runs belongs to this job, as GEPA would resume another job's candidates."""
    from rlm_dspy.optimize.rollouts import key_of

    _make_folder(folder, f"--log-dir {folder}: cannot create the folder")
    mine = key_of(job.program, job.lm, optimizer, job.metric, *job.train, *job.dev)
    path = folder / "job.txt"
    if path.exists() and path.read_text(encoding="utf-8") != mine and not _optimizer(optimizer).state_per_job:
        raise UsageError(
            f"--log-dir {folder} belongs to another job (program, data, metric, model, optimizer); name another "
            "folder."
        )
    path.write_text(mine, encoding="utf-8")


def _check_state(path: Path, program: dspy.Module) -> None:
    try:
        program.dump_state()
    except TypeError as error:  # the program has its own LM
        raise UsageError(
            f"--state {path}: {error} Omit --state, or configure the LM with dspy.configure(lm=...)."
        ) from error


def _make_folder(folder: Path, refusal: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{refusal}: {error}") from error


def _before_it_starts(job: Job, held_out: list[dspy.Example], options: OptimizeOptions) -> dspy.Module:
    """Check everything that can be checked without a model call; return the program to compare with.

    If a policy exists at `--out`, the comparison is with the program with that policy, so that no worse policy
    replaces it.
    """
    from rlm_dspy._dspy_compat import thawing
    from rlm_dspy.optimize import with_policy
    from rlm_dspy.optimize.policy_provenance import act_of
    from rlm_dspy.optimize.promotion import check_held_out

    if options.log_dir:
        _check_log_dir(options.log_dir, job, options.optimizer)
    act = act_of(job.program, options.predictor)
    if all(act is not each for each in job.program.predictors()):
        raise UsageError(
            f"The RLM in {options.program} is frozen, as it was compiled before, so no optimizer changes it. "
            f"Unfreeze it: {'; '.join(thawing(job.program))}."
        )
    if options.state:
        _check_state(options.state, job.program)
    if held_out:
        check_held_out(held_out, [*job.train, *job.dev], min_examples=1)
    out, before = options.out, job.program
    _make_folder(out.parent, f"--out {out}: cannot create its folder")
    if out.exists():
        if not held_out:
            raise UsageError(f"--out {out} already exists; pass --held-out to compare with it, or another --out.")
        tell(f"{out} already exists; the new policy replaces it only if it does not score lower.")
        before = with_policy(job.program, out)
    read = [path for path in (options.train, options.dev, options.held_out) if path]
    check_outputs({"--out": out, "--state": options.state}, [*read, program_file(options.program)])
    return before


def _kept_of_runs(options: OptimizeOptions) -> str:
    """Return where the finished runs of an interrupted optimization are kept."""
    if options.optimizer not in _RESUMING:
        return "The same command takes the replies that were paid for from DSPy's cache."
    where = f"in {options.log_dir}" if options.log_dir else "with --log-dir only"
    return f"Finished runs are kept {where}."


def _keep_beside(compiled: dspy.Module, out: Path, why: str, about: About) -> None:
    """Write a policy that is not written to `out` beside it, so that its paid runs are not lost."""
    from rlm_dspy.optimize import save_policy

    path = out.with_name(f"{out.stem}.{why}.json")
    message = f"The policy that was found is in {path}. It was {why.replace('-', ' ')}."
    done(lambda: save_policy(compiled, path, **about), message, f"{path} was not written: ")


def _keep(
    job: Job, compiled: dspy.Module, before: dspy.Module, held_out: list[dspy.Example], out: Path, about: About
) -> tuple[bool, Comparison, str]:
    """Write the policy if it is not worse; return whether it was written, both scores, and the reason."""
    from rlm_dspy.optimize import compare, promote, save_policy

    if held_out:
        options = {"seen": [*job.train, *job.dev], "num_threads": job.threads, "min_examples": 1, **about}
        compared = promote(compiled, before, held_out, job.metric, path=out, **options)
        if not compared.not_worse:
            _keep_beside(compiled, out, "not-promoted", about)
        return compared.not_worse, compared, compared.reason
    compared = compare(compiled, before, job.dev, job.metric, num_threads=job.threads)
    if compared.difference < 0 or not any(compared.candidate):
        said = f"Not written: on the examples used to select candidates it scored {compared.seen}."
        return False, compared, said
    scores = {"dev (candidates were judged on it)": compared.candidate, "dev before": compared.incumbent}
    save_policy(compiled, out, scores=scores, **about)
    said = f"Written without held-out examples. Scores on the examples used to select candidates: {compared.seen}."
    return True, compared, said
