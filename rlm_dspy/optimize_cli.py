"""The command `rlm-dspy optimize program.py --train data.jsonl`."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import logging
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import dspy
import typer

from rlm_dspy.examples import read_examples
from rlm_dspy.exits import errors_as_lines, tell
from rlm_dspy.forecast import forecast, pilot, told
from rlm_dspy.models import choose_model
from rlm_dspy.optimizers import OPTIMIZERS, Job
from rlm_dspy.policies import acts_in, save_policy
from rlm_dspy.promotion import compare, promote
from rlm_dspy.rlm import RLM
from rlm_dspy.scores import score_of
from rlm_dspy.task import UsageError
from rlm_dspy.traced import traced

if TYPE_CHECKING:
    from rlm_dspy.forecast import Forecast
    from rlm_dspy.promotion import Comparison
    from rlm_dspy.scores import Metric

_SECONDS_BETWEEN_LINES = 2.0


def optimize(
    program: Annotated[
        str, typer.Argument(metavar="FILE.py[:NAME]", help="Where the program is; its NAME is `program`.")
    ],
    train: Annotated[Path, typer.Option(help="Training examples, one JSON object a line.")],
    out: Annotated[Path, typer.Option(help="The policy file to write.")],
    dev: Annotated[Path | None, typer.Option(help="Examples that candidates are judged on; else those.")] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(help="Examples nothing else sees: the policy is written only if not worse on them."),
    ] = None,
    optimizer: Annotated[str, typer.Option(help=f"One of {', '.join(OPTIMIZERS)}.")] = "trajectories",
    metric: Annotated[
        str | None,
        typer.Option(help="A function of FILE.py; by default `metric`, else whether all labels are equal."),
    ] = None,
    inputs: Annotated[
        str | None, typer.Option(help="The input fields, by commas; by default the program's.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="As for `ask`; by default what FILE.py configured.")] = None,
    predictor: Annotated[
        str | None, typer.Option(help="Which act the policy is of, if there are several.")
    ] = None,
    state: Annotated[Path | None, typer.Option(help="Also save the whole program's state here, as JSON.")] = None,
    pilots: Annotated[int, typer.Option(min=1, help="Runs that the forecast is made from.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Runs at once.")] = 1,
    seed: Annotated[int, typer.Option(help="The seed.")] = 0,
    log_dir: Annotated[
        Path | None, typer.Option(help="Where finished runs are kept, to go on after a kill.")
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Log forecast, candidates, scores, prompts and policy to MLflow.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask after the forecast.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Optimize a program with an RLM inside, and save what it learned as a policy.

    A few pilot runs are made first, and what all of it will cost is told before it starts.

    \b
    For example:
      rlm-dspy optimize program.py --train train.jsonl --held-out test.jsonl --out mine.json
      rlm-dspy ask "..." FILE --policy mine.json

    \b
    After a kill, the same command with the same --log-dir goes on: trajectories does not repeat finished runs,
    gepa goes on from its last candidate; with the others, replies in DSPy's cache are not paid again, and code
    runs again.
    """  # noqa: D301 (\b keeps the line breaks)
    with errors_as_lines(debug=debug):
        named = _optimizer(optimizer)
        module, found = load_program(program)
        lm = choose_model(model) if model or dspy.settings.lm is None else dspy.settings.lm
        judge = Counted(load_metric(module, metric))
        fields = inputs.split(",") if inputs else input_names(found)
        data = [read_examples(path, fields) if path else [] for path in (train, dev, held_out)]
        job = Job(found, data[0], data[1] or data[0], judge, lm, threads, seed, log_dir)
        about = {
            "name": out.stem,
            "predictor": predictor,
            "optimizer": optimizer,
            "data": f"{train.name}, {len(data[0])} examples",
            "seeds": [seed],
        }
        log = _log_to_mlflow if trace else _log_nowhere
        with traced(f"optimize {out.stem}") if trace else contextlib.nullcontext(), dspy.context(lm=lm), _shown():
            cast = _ask_to_go_on(job, named.runs(job), pilots, yes=yes)
            log({**about, "model": lm.model}, cast=cast, prompts={"before": _prompts(found)})
            judge.of = named.runs(job)
            compiled = named.compile(job)
            judge.of = 0
            compared = _keep(job, compiled, data[2], out, about)
            written = compared.not_worse or not data[2]
            after = {"after": _prompts(compiled)}
            log({}, prompts=after, compared=compared, policy=out if written else None)
        if state is not None:
            compiled.save(str(state))
    typer.echo(compared.reason if data[2] else f"Written without held-out examples. Dev: {compared.reason}")
    raise typer.Exit(0 if written else 1)


def _log_nowhere(about: dict[str, Any], **_: Any) -> None:
    """Log nothing."""


def _log_to_mlflow(about: dict[str, Any], **found: Any) -> None:
    from rlm_dspy.tracing import log_compile  # noqa: PLC0415 (takes seconds)

    log_compile(about, **found)


def _prompts(program: dspy.Module) -> dict[str, Any]:
    """Return what each predictor is told: its instructions and demos."""
    states = {name: predictor.dump_state() for name, predictor in program.named_predictors()}
    return {
        name: {"instructions": state["signature"]["instructions"], "demos": state["demos"]}
        for name, state in states.items()
    }


def _optimizer(name: str) -> Any:
    if name not in OPTIMIZERS:
        raise UsageError(f"There is no optimizer {name!r}; there are {', '.join(OPTIMIZERS)}.")
    return OPTIMIZERS[name]


def load_program(where: str) -> tuple[Any, dspy.Module]:
    """Return the module of a Python file, and the program in it: a `dspy.Module`, or what a function returns.

    Args:
        where: `FILE.py`, whose program is named `program`, or `FILE.py:NAME`.

    Raises:
        UsageError: If there is no such file or name, or it is no program. What the file raises is raised.
    """
    file, _, name = where.partition(".py:")
    path = Path(where if not name else f"{file}.py")
    if not path.is_file():
        raise UsageError(f"There is no file {path}.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    sys.path.insert(0, str(path.resolve().parent))
    spec.loader.exec_module(module)
    found = getattr(module, name or "program", None)
    found = found() if callable(found) and not isinstance(found, dspy.Module) else found
    if not isinstance(found, dspy.Module):
        raise UsageError(f"{path} has no dspy.Module named {name or 'program'!r}; name one: {path}:NAME.")
    if not acts_in(found):
        raise UsageError(f"The program in {path} has no RLM inside.")
    return module, found


def load_metric(module: Any, name: str | None) -> Metric:
    """Return a metric of a program's file; if it has none, whether all labels are equal.

    Raises:
        UsageError: If there is no function of that name.
    """
    found = getattr(module, name or "metric", None)
    if callable(found):
        return found  # type: ignore[no-any-return]
    if name:
        raise UsageError(f"There is no function {name!r} in the program's file.")
    return labels_equal


def labels_equal(example: dspy.Example, prediction: Any, trace: Any = None) -> bool:  # noqa: ARG001
    """Whether every label of the example is what the program gave."""
    return all(prediction.get(name) == value for name, value in example.labels().items())


def input_names(program: dspy.Module) -> list[str]:
    """Return the names of a program's inputs: an RLM's fields, else the parameters of its `forward`."""
    if isinstance(program, RLM):
        return list(program.signature.input_fields)
    return list(inspect.signature(type(program).forward).parameters)[1:]


class Counted:
    """A metric that tells how far a compile is: every run ends with a call of it.

    Args:
        metric: The metric.
    """

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.of = 0
        self._count, self._sum, self._started = 0, 0.0, time.monotonic()
        self._told, self._lock = 0.0, threading.Lock()
        self.__qualname__ = getattr(metric, "__qualname__", "metric")

    def __call__(self, example: Any, prediction: Any, trace: Any = None, *_: Any) -> Any:
        """Score, and tell."""
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
    """Let DSPy's optimizers report on standard error; standard output is for the result."""
    logger = logging.getLogger("dspy.teleprompt")
    before = logger.level
    logger.setLevel(logging.INFO)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(before)


def _ask_to_go_on(job: Job, runs: int, pilots: int, *, yes: bool) -> Forecast:
    tried = pilot(job.program, job.dev[:pilots], job.metric)
    cast = forecast(tried, runs, threads=job.threads, seed=job.seed)
    tell(told(cast, tried))
    if yes:
        return cast
    if not sys.stdin.isatty():
        raise UsageError("Nobody can be asked whether to go on; give --yes.")
    typer.confirm("Go on?", default=True, abort=True, err=True)
    return cast


def _keep(
    job: Job, compiled: dspy.Module, held_out: list[dspy.Example], out: Path, about: dict[str, Any]
) -> Comparison:
    """Write the policy: with held-out examples only if it is not worse; with the scores of before and after."""
    if held_out:
        seen = [*job.train, *job.dev]
        options: dict[str, Any] = {"seen": seen, "num_threads": job.threads, "min_examples": 1}
        return promote(compiled, job.program, held_out, job.metric, path=out, **options, **about)
    compared = compare(compiled, job.program, job.dev, job.metric, num_threads=job.threads)
    scores = {"dev (candidates were judged on it)": compared.candidate, "dev before": compared.incumbent}
    save_policy(compiled, out, scores=scores, **about)
    return compared
