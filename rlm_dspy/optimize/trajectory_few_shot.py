"""Defines the optimizer `TrajectoryFewShot`, which builds short demos from whole runs."""

from __future__ import annotations

import inspect
import random
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy._dspy_compat import Teleprompter, thawing
from rlm_dspy.cache import SubCallCache
from rlm_dspy.compute import Compute
from rlm_dspy.optimize.demos import Demo, choose, from_call, from_run
from rlm_dspy.optimize.rollouts import Found, found_once, identity_of, key_of, run_each, with_inputs_set
from rlm_dspy.optimize.statistics import score_of
from rlm_dspy.optimize.traced_runs import ended_by_submit, traced_runs
from rlm_dspy.prompt.adapter import Act
from rlm_dspy.text import counted, logger

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    from rlm_dspy.optimize.statistics import Metric


_logger = logger()


@dataclass
class TrajectoryFewShot(Teleprompter):
    """Adds demos from successful runs to every predictor of a program.

    The program (or a teacher) runs on each training example. Each high-scoring run of an RLM, root or
    child, gives one demo of `act`: a short conversation of the first turn, a failed turn and the one that
    repaired it, the turn before the last, and the last. Outputs and environment are cut, so no long input is kept.
    Each demo ends with `SUBMIT`. If a run's answer was read from its trajectory, its demo submits this
    answer; if the program is not an RLM itself, such a run gives no demo.
    The other predictors (`query`, `subs.*`, those around the RLM) get ordinary demos. The best are chosen: by
    score, then the shortest; for `act` including one with a recovery and one of a child, if any.

    Labeled examples are not used: no dataset contains the inputs and outputs of a turn.

    Attributes:
        metric: `metric(example, prediction, trace)`, a bool, a number, or a `dspy.Prediction` with `score`.
        metric_threshold: The minimum score of a run for demos; None for any above 0.
        max_demos: Demos per predictor. If the RLM has `demos_per_run`, a pool for it to choose from: 20, 50, ...
        max_demo_chars: The maximum length of a demo; longer ones are not used.
        max_chars: Characters of the demos of one predictor that a run shows, on average if it shows a part.
        output_chars: Characters kept of each output, and of each input of an ordinary demo.
        environment_chars: Characters kept of the environment; only the parts that runs do not share are shown.
        max_runs: Examples to run; None for all of them.
        num_threads: Concurrent examples.
        max_errors: How many examples may raise; None for `dspy.settings.max_errors`.
        teacher_settings: DSPy settings while the teacher runs, as in `BootstrapFewShot`.
        seed: The seed of the example order, which decides between equally good demos.
        log_dir: A folder for finished runs, so that the same compile can resume after a kill. Runs of another
            program, model, metric or setting are not taken over.
    """

    metric: Metric
    metric_threshold: float | None = None
    max_demos: int = 4
    max_demo_chars: int = 6_000
    max_chars: int = 16_000
    output_chars: int = 400
    environment_chars: int = 4_000
    max_runs: int | None = None
    num_threads: int = 1
    max_errors: int | None = None
    teacher_settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    log_dir: str | os.PathLike[str] | None = None

    def compile(
        self,
        student: dspy.Module,
        *,
        trainset: Iterable[dspy.Example],
        teacher: dspy.Module | dspy.BaseLM | None = None,
        valset: Sequence[dspy.Example] | None = None,
    ) -> dspy.Module:
        """Return a copy of `student` with demos. A predictor without new demos keeps those it had.

        A warning is logged if no example gave a demo.

        Args:
            student: The program. It is not changed.
            trainset: Examples with inputs set.
            teacher: The teacher: a program whose predictors have the same names, or an LM that `student`
                runs with; default: `student` itself.
            valset: Not used; accepted because callers of other optimizers pass it.

        Raises:
            TypeError: If the metric does not take an example, a prediction and a trace.
            ValueError: If the program has no predictors or only frozen ones, the trainset is empty, an example
                has no inputs set, the teacher's predictors have other names, or a number of runs or threads is
                below 1.
            Exception: The error of an example, after more than `max_errors`, or if all examples raised.
        """
        check_metric(self.metric)
        for name, value in {"num_threads": self.num_threads, "max_runs": self.max_runs}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}.")
        check_predictors(student)
        compiled = student.deepcopy()
        lm = teacher if isinstance(teacher, dspy.BaseLM) else None
        program = teacher if isinstance(teacher, dspy.Module) else student.deepcopy()
        if lm is not None:
            program.set_lm(lm)
        check_names(compiled, program)
        examples = self._ordered(trainset)
        found = self._gather(program, examples, lm)
        if not any(found.values()):
            self._warn_of_no_demos(student, len(examples))
        for name, predictor in compiled.named_predictors():
            shown = min(getattr(predictor, "demos_per_run", None) or self.max_demos, self.max_demos)
            most_chars = self.max_chars * self.max_demos // max(1, shown)
            chosen = choose(found.get(name, []), max_demos=self.max_demos, max_chars=most_chars)
            predictor.demos = [demo.example for demo in chosen] or predictor.demos
        return compiled

    def _warn_of_no_demos(self, program: dspy.Module, count: int) -> None:
        least = "above 0" if self.metric_threshold is None else f"{self.metric_threshold} or more"
        of_rlms = [getattr(module, "compute", None) for _, module in program.named_sub_modules()]
        direct = any(isinstance(each, Compute) and each.direct_below is not None for each in of_rlms)
        _logger.warning(
            "TrajectoryFewShot: none of %s gave a demo, so the program keeps those it had. Give "
            "a better teacher: an example gives demos if its score is %s, of turns of at most %s characters "
            "(max_demo_chars).%s",
            counted(count, "example"),
            least,
            f"{self.max_demo_chars:,}",
            " A run that one plain call answers has no turns: compile without Compute(direct_below=...)."
            if direct
            else "",
        )

    def _ordered(self, trainset: Iterable[dspy.Example]) -> list[dspy.Example]:
        ordered = with_inputs_set(trainset)
        if not ordered:
            raise ValueError("The trainset is empty; give at least one example.")
        random.Random(self.seed).shuffle(ordered)  # noqa: S311  # shuffling, not a secret
        return ordered[: self.max_runs]

    def _gather(self, program: dspy.Module, examples: list[dspy.Example], lm: dspy.BaseLM | None) -> Found:
        """Return the demos by predictor name, in the order of the examples."""
        names = {id(predictor): name for name, predictor in program.named_predictors()}
        cache, key = None, ""
        if self.log_dir:
            made_with = (self.metric_threshold, self.max_demo_chars, self.output_chars, self.environment_chars)
            teaching = sorted((name, identity_of(value)) for name, value in self.teacher_settings.items())
            key = key_of(program, lm or dspy.settings.lm, self.metric, *made_with, *teaching)
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)  # before anything is paid
            cache = SubCallCache(Path(self.log_dir) / "rollouts.sqlite")
        settings = {**({"lm": lm} if lm is not None else {}), **self.teacher_settings}
        allowed = dspy.settings.max_errors if self.max_errors is None else self.max_errors

        def attempt(example: dspy.Example) -> Found:
            run = partial(self._demos, program, names, example, settings)
            return found_once(cache, key, example, run)

        found: Found = defaultdict(list)
        for demos in run_each(attempt, examples, threads=self.num_threads, max_errors=allowed):
            for name, of_name in demos.items():
                found[name] += of_name
        return found

    def _demos(
        self, program: dspy.Module, names: dict[int, str], example: dspy.Example, settings: Mapping[str, Any]
    ) -> Found:
        """Run one example and return its demos by predictor name; none if it scored too little."""
        with dspy.context(**settings, trace=[]):
            prediction = program(**example.inputs())
            trace = list(dspy.settings.trace)
        score = score_of(self.metric(example, prediction, trace))
        if score <= 0 if self.metric_threshold is None else score < self.metric_threshold:
            return {}
        demos: dict[str, list[Demo]] = defaultdict(list)
        chars = {"output_chars": self.output_chars, "environment_chars": self.environment_chars}
        for run in traced_runs(trace):
            ended, name = ended_by_submit(run, prediction), names.get(id(run.predictor))
            if name and ended is not None:
                demos[name].append(from_run(ended, score, **chars))
        for predictor, inputs, outputs in trace:
            name = names.get(id(predictor))
            if name and not isinstance(predictor, Act):
                demos[name].append(from_call(inputs, outputs, score, input_chars=self.output_chars))
        return {name: [d for d in of_name if d.chars <= self.max_demo_chars] for name, of_name in demos.items()}


def check_metric(metric: Metric) -> None:
    """Check that a metric can be called with an example, a prediction and a trace.

    Raises:
        TypeError: If not.
    """
    try:
        inspect.signature(metric).bind("example", "prediction", "trace")
    except ValueError:
        return  # a builtin without a readable signature
    except TypeError as error:
        raise TypeError(
            f"Invalid metric {metric!r}: it must be a function metric(example, prediction, trace) ({error})."
        ) from error


def check_predictors(program: dspy.Module) -> None:
    """Check that a program has predictors that can get demos.

    Raises:
        ValueError: If not; the message says whether they are frozen.
    """
    if program.predictors():
        return
    if thaw := thawing(program):
        raise ValueError(
            "The program's predictors are frozen, as they were compiled before, so none can get demos. Unfreeze "
            f"them first: {'; '.join(thaw)}."
        )
    raise ValueError("The program has no predictors, so none can get demos; make its RLM an attribute of it.")


def check_names(student: dspy.Module, teacher: dspy.Module) -> None:
    """Check that both programs have predictors of the same names.

    Raises:
        ValueError: If not; the message lists the different names.
    """
    mine, its = (dict(program.named_predictors()).keys() for program in (student, teacher))
    if mine != its:
        raise ValueError(
            f"Teacher and student must have predictors of the same names; these differ: {sorted(mine ^ its)}."
        )
