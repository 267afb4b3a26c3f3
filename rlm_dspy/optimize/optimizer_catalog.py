"""Maps the optimizer names of `rlm-dspy optimize` to optimizers, and bounds the number of runs of each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dspy

from rlm_dspy.optimize import upstream
from rlm_dspy.optimize.feedback import trajectory_reward, with_feedback
from rlm_dspy.optimize.trajectory_few_shot import TrajectoryFewShot

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from rlm_dspy.optimize.statistics import Metric

_CANDIDATES = 6
_DEMOS = 4
_OF_RUNS = {"max_bootstrapped_demos": _DEMOS, "max_labeled_demos": 0}
"""Only demos of runs. The optimizer `labeled` uses labeled examples, which help less."""


@dataclass(frozen=True)
class Job:
    """The input of an optimizer.

    Attributes:
        program: The program; it is not changed.
        train: The training examples.
        dev: The examples to score candidates on; default `train`.
        metric: `metric(example, prediction, trace=None)`.
        lm: The model, also of the optimizer's own calls.
        threads: Concurrent runs.
        seed: The seed, if the optimizer takes one.
        log_dir: The state folder, for optimizers that can resume after a kill. For the others DSPy's cache keeps
            paid replies.
    """

    program: dspy.Module
    train: list[dspy.Example]
    dev: list[dspy.Example]
    metric: Metric
    lm: dspy.BaseLM
    threads: int = 1
    seed: int = 0
    log_dir: str | os.PathLike[str] | None = None

    @property
    def predictors(self) -> int:
        """The number of predictors in the program."""
        return len(self.program.predictors())


@dataclass(frozen=True)
class Named:
    """An optimizer that the command line offers by name.

    Attributes:
        compile: Returns the optimized program.
        runs: The maximum number of runs of the program.
        state_per_job: Whether it keeps the state of each job apart from that of other jobs.
    """

    compile: Callable[[Job], dspy.Module]
    runs: Callable[[Job], int]
    state_per_job: bool = False


def _demos(job: Job) -> int:
    """Return how many demos to keep: one per example if each run shows only the nearest."""
    pooled = any(getattr(predictor, "demos_per_run", None) for predictor in job.program.predictors())
    return max(_DEMOS, len(job.train)) if pooled else _DEMOS


def _trajectories(job: Job) -> dspy.Module:
    optimizer = TrajectoryFewShot(
        job.metric, max_demos=_demos(job), num_threads=job.threads, seed=job.seed, log_dir=job.log_dir
    )
    return optimizer.compile(job.program, trainset=job.train)


def _labeled(job: Job) -> dspy.Module:
    return dspy.LabeledFewShot(k=_DEMOS).compile(job.program, trainset=job.train)


def _bootstrap(job: Job) -> dspy.Module:
    optimizer = dspy.BootstrapFewShot(metric=job.metric, **{**_OF_RUNS, "max_bootstrapped_demos": _demos(job)})
    return optimizer.compile(job.program, trainset=job.train)


def _random_search(job: Job) -> dspy.Module:
    optimizer = dspy.BootstrapFewShotWithRandomSearch(
        job.metric, **_OF_RUNS, num_candidate_programs=_CANDIDATES, num_threads=job.threads
    )
    return optimizer.compile(job.program, trainset=job.train, valset=job.dev)


def _mipro(job: Job, demos: int = _DEMOS) -> dspy.Module:
    optimizer = dspy.MIPROv2(
        job.metric,
        prompt_model=job.lm,
        task_model=job.lm,
        **{**_OF_RUNS, "max_bootstrapped_demos": demos},
        num_threads=job.threads,
        seed=job.seed or 9,
        log_dir=job.log_dir and str(job.log_dir),
    )
    return optimizer.compile(job.program, trainset=job.train, valset=job.dev)


def _mipro_runs(job: Job, demos: int = _DEMOS) -> int:
    """Count the runs of MIPROv2's light setting."""
    variables = job.predictors * (2 if demos else 1)
    trials = int(max(2 * variables * math.log2(_CANDIDATES), 1.5 * _CANDIDATES))
    dev = min(len(job.dev), 100)
    full, batch = (trials // 5 + 2, 35) if dev > 50 else (1, dev)  # noqa: PLR2004  # MIPROv2's own numbers
    return _CANDIDATES * len(job.train) + full * dev + trials * batch


def _gepa(job: Job) -> dspy.Module:
    optimizer = upstream.GEPA(
        with_feedback(job.metric),
        max_metric_calls=_gepa_budget(job),
        reflection_lm=job.lm,
        num_threads=job.threads,
        seed=job.seed,
        log_dir=job.log_dir and str(job.log_dir),
    )
    return optimizer.compile(job.program, trainset=job.train, valset=job.dev)


def _gepa_budget(job: Job) -> int:
    return (len(job.dev) + 6) * _CANDIDATES * job.predictors


def _gepa_runs(job: Job) -> int:
    """Count the budget plus the last iteration: two minibatches of three examples, and all of `dev`."""
    return _gepa_budget(job) + 6 + len(job.dev)


def _simba(job: Job) -> dspy.Module:
    optimizer = upstream.SIMBA(
        metric=trajectory_reward(job.metric),
        bsize=min(16, len(job.train)),
        num_candidates=_CANDIDATES,
        max_steps=4,
        num_threads=job.threads,
    )
    return optimizer.compile(job.program, trainset=job.train, seed=job.seed)


def _simba_runs(job: Job) -> int:
    return 4 * min(16, len(job.train)) * (2 * _CANDIDATES + 1) + (_CANDIDATES + 1) * len(job.train)


def _copro(job: Job) -> dspy.Module:
    optimizer = dspy.COPRO(prompt_model=job.lm, metric=job.metric, breadth=_CANDIDATES, depth=2)
    return optimizer.compile(job.program, trainset=job.dev, eval_kwargs={"num_threads": job.threads})


def _infer_rules(job: Job) -> dspy.Module:
    optimizer = upstream.InferRules(
        metric=job.metric, **_OF_RUNS, num_candidates=_CANDIDATES, num_threads=job.threads
    )
    return optimizer.compile(job.program, trainset=job.train, valset=job.dev)


OPTIMIZERS: dict[str, Named] = {
    "trajectories": Named(_trajectories, lambda job: len(job.train), state_per_job=True),
    "labeled": Named(_labeled, lambda _: 0),
    "bootstrap": Named(_bootstrap, lambda job: len(job.train)),
    "random-search": Named(
        _random_search, lambda job: (_CANDIDATES + 1) * len(job.train) + (_CANDIDATES + 3) * len(job.dev)
    ),
    "mipro": Named(_mipro, _mipro_runs),
    "mipro-zero-shot": Named(lambda job: _mipro(job, 0), lambda job: _mipro_runs(job, 0)),
    "gepa": Named(_gepa, _gepa_runs),
    "simba": Named(_simba, _simba_runs),
    "copro": Named(_copro, lambda job: 3 * _CANDIDATES * job.predictors * len(job.dev)),
    "infer-rules": Named(_infer_rules, lambda job: len(job.train) + _CANDIDATES * len(job.dev)),
}
"""By name."""
