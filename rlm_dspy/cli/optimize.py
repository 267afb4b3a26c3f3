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

from rlm_dspy.cli.errors import (
    ANSWERED,
    FAILED,
    UNANSWERED,
    check_distinct,
    check_writable,
    done,
    errors_as_lines,
    say,
    tell,
)
from rlm_dspy.cli.tracing_option import traced
from rlm_dspy.errors import UsageError
from rlm_dspy.loop.rlm import RLM
from rlm_dspy.models import choose_model
from rlm_dspy.optimize.catalog import OPTIMIZERS, Job, Named
from rlm_dspy.optimize.datasets import read_examples
from rlm_dspy.optimize.forecast import forecast, pilot, told
from rlm_dspy.optimize.policies import act_of, acts_in, save_policy, with_policy
from rlm_dspy.optimize.promotion import check_held_out, compare, promote
from rlm_dspy.optimize.rollouts import key_of
from rlm_dspy.optimize.statistics import score_of
from rlm_dspy.repl.coercion import read_value

if TYPE_CHECKING:
    from rlm_dspy.optimize.forecast import Forecast
    from rlm_dspy.optimize.promotion import Comparison
    from rlm_dspy.optimize.statistics import Metric

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
    kept = f"Finished runs are kept in {log_dir}." if log_dir else "Finished runs are kept with --log-dir only."
    interrupted = [f"Interrupted. {kept}"]
    with errors_as_lines(debug=debug, interrupted=lambda: interrupted[-1]):
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
                saved = state is None or done(lambda: compiled.save(str(state)), f"The state is in {state}.")
                compared, said = _keep(job, compiled, before, final, out, about)
            say(said)  # before the wait for MLflow
            interrupted.append("Interrupted after the end, before everything was logged.")
            written = not said.startswith("Not ")
            log({}, prompts={"after": _prompts(compiled)}, compared=compared, policy=out if written else None)
    raise typer.Exit(FAILED if not saved else ANSWERED if written else UNANSWERED)


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
        UsageError: If there is no such file or name, if it is no program, or the file raises when it is run.
    """
    path, name = program_file(where), where.partition(".py:")[2]
    if not path.is_file():
        raise UsageError(f"There is no file {path}.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
        found = getattr(module, name or "program", None)
        found = found() if callable(found) and not isinstance(found, dspy.Module) else found
    except Exception as error:
        raise UsageError(f"{path} failed: {type(error).__name__}: {error}") from error
    if not isinstance(found, dspy.Module):
        raise UsageError(f"{path} has no dspy.Module named {name or 'program'!r}; name one: {path}:NAME.")
    if not acts_in(found):
        raise UsageError(f"The program in {path} has no RLM inside.")
    return module, found


def program_file(where: str) -> Path:
    """Return the file in `FILE.py` or `FILE.py:NAME`."""
    file, _, name = where.partition(".py:")
    return Path(f"{file}.py" if name else where)


def load_metric(module: Any, name: str | None) -> Metric:
    """Return a metric of a program's file; if it has none, whether all labels are equal.

    Raises:
        UsageError: If there is no function of that name, or it takes other arguments.
    """
    found = getattr(module, name or "metric", None)
    if callable(found):
        check_metric(found)
        return found  # type: ignore[no-any-return]
    if name:
        raise UsageError(f"There is no function {name!r} in the program's file.")
    return labels_equal


def check_metric(metric: Any) -> None:
    """Check that a metric can be called as all optimizers call it.

    Raises:
        UsageError: If not; the message says how.
    """
    try:
        inspect.signature(metric).bind(None, None, None)
    except TypeError as error:
        raise UsageError(
            f"The metric cannot be called as metric(example, prediction, trace): {error}. Give other parameters a "
            "default."
        ) from error
    except ValueError:
        return  # it has no signature that could be read


def labels_equal(example: dspy.Example, prediction: Any, trace: Any = None) -> bool:  # noqa: ARG001
    """Whether every label of the example is what the program gave."""
    return all(prediction.get(name) == value for name, value in example.labels().items())


def labelled(examples: list[dspy.Example], program: dspy.Module, where: str) -> list[dspy.Example]:
    """Return examples with their labels read into the types of the program's outputs, as its answers are.

    Args:
        examples: The examples.
        program: The program; of one that is no RLM, the types are not known.
        where: What they were read from, for messages.

    Raises:
        UsageError: If an example has no label, or one that is no output of the program, or of another type.
    """
    outputs = program.signature.output_fields if isinstance(program, RLM) else None
    read = []
    for number, example in enumerate(examples, start=1):
        labels = dict(example.labels().items())
        if not labels or (outputs and set(labels) - set(outputs)):
            wanted = f"; its outputs are {sorted(outputs)}" if outputs else ""
            raise UsageError(
                f"{where}, example {number}: there are the labels {sorted(labels)}, which cannot be compared with "
                f"what the program gives{wanted}. Correct them, or write a function `metric` in its file."
            )
        try:
            values = {n: read_value(v, outputs[n].annotation) for n, v in labels.items()} if outputs else {}
        except ValueError as error:
            raise UsageError(f"{where}, example {number}: {error}") from error
        read.append(example.copy(**values).with_inputs(*example.inputs()))
    return read


def input_names(program: dspy.Module) -> list[str]:
    """Return the names of a program's inputs: an RLM's fields, else what its `forward` cannot do without.

    Raises:
        UsageError: If `forward` names none.
    """
    if isinstance(program, RLM):
        return list(program.signature.input_fields)
    parameters = list(inspect.signature(type(program).forward).parameters.values())[1:]
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if not named:
        raise UsageError("The program's forward names no inputs; name them: --inputs context,question.")
    return [p.name for p in named if p.default is p.empty] or [p.name for p in named]


class Counted:
    """A metric that tells how far a compile is: every run ends with a call of it.

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
    if outside := [one.score for one in tried if not 0 <= one.score <= 1]:
        raise UsageError(f"The metric gave {outside[0]:g}; give scores between 0 and 1.")
    cast = forecast(tried, runs, threads=job.threads, seed=job.seed)
    tell(told(cast, tried))
    if yes:
        return cast
    if not sys.stdin.isatty():
        raise UsageError("Nobody can be asked whether to go on; give --yes.")
    typer.confirm("Go on?", default=True, abort=True, err=True)
    return cast


def _check_log_dir(folder: Path | None, named: Named, job: Job, optimizer: str) -> None:
    """Check that a folder of finished runs is of this job; GEPA would go on with another's candidates."""
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--log-dir {folder}: the folder cannot be made: {error}") from error
    mine = key_of(job.program, job.lm, optimizer, inspect.unwrap(job.metric), *job.train, *job.dev)
    path = folder / "job.txt"
    if path.exists() and path.read_text(encoding="utf-8") != mine and not named.tells_jobs_apart:
        raise UsageError(
            f"--log-dir {folder} is of another job (program, data, metric, model, optimizer): name another folder."
        )
    path.write_text(mine, encoding="utf-8")


def _before_it_starts(job: Job, held_out: list[dspy.Example], out: Path, predictor: str | None) -> dspy.Module:
    """Check what can be checked before anything is paid for; return what the new policy has to be compared with.

    That is the program with the policy that is at `out`, if there is one: no policy is replaced by a worse one.
    """
    act_of(job.program, predictor)
    if held_out:
        check_held_out(held_out, [*job.train, *job.dev], min_examples=1)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out}: its folder cannot be made: {error}") from error
    check_writable(out, "--out")
    if not out.exists():
        return job.program
    if not held_out:
        raise UsageError(
            f"--out {out} is there already: give --held-out to see which is better, or another --out."
        )
    tell(f"{out} is there already: the new policy is compared with it, and replaces it only if it is not worse.")
    return with_policy(job.program, out)


def _keep(
    job: Job,
    compiled: dspy.Module,
    before: dspy.Module,
    held_out: list[dspy.Example],
    out: Path,
    about: dict[str, Any],
) -> tuple[Comparison, str]:
    """Write the policy if it is not worse; return the scores of before and after, and what was decided."""
    if held_out:
        seen = [*job.train, *job.dev]
        options: dict[str, Any] = {"seen": seen, "num_threads": job.threads, "min_examples": 1}
        compared = promote(compiled, before, held_out, job.metric, path=out, **options, **about)
        return compared, compared.reason
    compared = compare(compiled, before, job.dev, job.metric, num_threads=job.threads)
    if compared.difference < 0 or not any(compared.candidate):
        return compared, f"Not written: on the examples that candidates were judged on it scored {compared.seen}."
    scores = {"dev (candidates were judged on it)": compared.candidate, "dev before": compared.incumbent}
    save_policy(compiled, out, scores=scores, **about)
    said = f"Written without held-out examples. Those that candidates were judged on: {compared.seen}."
    return compared, said
