"""Every optimizer of DSPy that makes a prompt better, as the matrix calls it: small, one thread, seeded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dspy
import numpy as np
from dspy.teleprompt.gepa.instruction_proposal import InstructionProposer

from rlm_dspy.optimize import TrajectoryFewShot, trajectory_reward, upstream, with_feedback
from tests.optimize.matrix_programs import exact

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_dspy.testing import ScriptedLM


@dataclass
class Compiling:
    """What an optimizer is given, and what it leaves.

    Attributes:
        make: Makes the program, each time anew.
        train: The training examples.
        dev: The examples that candidates are judged on.
        lm: The model that plays every part.
        offered: The predictors that the optimizer proposed something for.
    """

    make: Callable[[], dspy.Module]
    train: list[dspy.Example]
    dev: list[dspy.Example]
    lm: ScriptedLM
    offered: set[str] = field(default_factory=set)

    def offer(self, *programs: dspy.Module) -> None:
        """Note the predictors in which programs differ from a new one."""
        plain = {name: predictor.signature.instructions for name, predictor in self.make().named_predictors()}
        for program in programs:
            for name, predictor in program.named_predictors():
                if predictor.demos or predictor.signature.instructions != plain.get(name):
                    self.offered.add(name)


def labeled(job: Compiling) -> dspy.Module:
    return dspy.LabeledFewShot(k=2).compile(job.make(), trainset=job.train)


def bootstrap(job: Compiling) -> dspy.Module:
    optimizer = dspy.BootstrapFewShot(metric=exact, max_bootstrapped_demos=2, max_labeled_demos=2)
    return optimizer.compile(job.make(), trainset=job.train)


def random_search(job: Compiling) -> dspy.Module:
    optimizer = dspy.BootstrapFewShotWithRandomSearch(
        exact, max_bootstrapped_demos=2, max_labeled_demos=2, num_candidate_programs=2, num_threads=1
    )
    compiled = optimizer.compile(job.make(), trainset=job.train, valset=job.dev)
    job.offer(*(candidate["program"] for candidate in compiled.candidate_programs))
    return compiled


def embedded(texts: list[str]) -> Any:
    """Return vectors of texts: how often each of 64 hashes of three letters comes."""
    assert max(map(len, texts)) < 3_000, "an embedder must not be given whole contexts"
    vectors = np.zeros((len(texts), 64), dtype=np.float32)
    for row, text in enumerate(texts):
        for at in range(len(text) - 2):
            vectors[row, sum(map(ord, text[at : at + 3])) % 64] += 1
    return vectors


def knn(job: Compiling) -> dspy.Module:
    optimizer = upstream.KNNFewShot(
        k=3, trainset=job.train, vectorizer=dspy.Embedder(embedded), metric=exact, max_labeled_demos=0
    )
    return optimizer.compile(job.make())


def copro(job: Compiling) -> dspy.Module:
    optimizer = dspy.COPRO(metric=exact, breadth=2, depth=1)
    return optimizer.compile(job.make(), trainset=job.dev, eval_kwargs={"num_threads": 1})


def mipro(job: Compiling, **options: Any) -> dspy.Module:
    optimizer = dspy.MIPROv2(exact, auto="light", num_threads=1, verbose=False, **options)
    compiled = optimizer.compile(job.make(), trainset=job.train, valset=job.dev)
    job.offer(*(candidate["program"] for candidate in compiled.candidate_programs))
    return compiled


def mipro_zero_shot(job: Compiling) -> dspy.Module:
    return mipro(job, max_bootstrapped_demos=0, max_labeled_demos=0)


class _Noting(InstructionProposer):
    """GEPA's proposer, noting which predictors it was asked for."""

    def __init__(self, job: Compiling) -> None:
        super().__init__()
        self.job = job

    def __call__(self, candidate: Any, reflective_dataset: Any, components_to_update: list[str]) -> dict[str, str]:
        self.job.offered |= set(components_to_update)
        texts: dict[str, str] = super().__call__(candidate, reflective_dataset, components_to_update)
        return texts


def gepa(job: Compiling) -> dspy.Module:
    optimizer = upstream.GEPA(
        with_feedback(exact),
        max_metric_calls=60,
        reflection_lm=job.lm,
        reflection_minibatch_size=2,
        instruction_proposer=_Noting(job),
        num_threads=1,
        skip_perfect_score=False,
    )
    return optimizer.compile(job.make(), trainset=job.train, valset=job.dev)


def simba(job: Compiling) -> dspy.Module:
    optimizer = upstream.SIMBA(
        metric=trajectory_reward(exact), bsize=len(job.train), num_candidates=4, max_steps=2, num_threads=1
    )
    compiled = optimizer.compile(job.make(), trainset=job.train, seed=1)
    job.offer(*(candidate["program"] for candidate in compiled.candidate_programs))
    return compiled


def infer_rules(job: Compiling) -> dspy.Module:
    optimizer = upstream.InferRules(
        metric=exact, num_candidates=1, num_rules=2, num_threads=1, max_labeled_demos=0, max_bootstrapped_demos=2
    )
    return optimizer.compile(job.make(), trainset=job.train, valset=job.dev)


def ensemble(job: Compiling) -> dspy.Module:
    return upstream.Ensemble(reduce_fn=dspy.majority).compile([bootstrap(job), trajectories(job)])


def better_together(job: Compiling) -> dspy.Module:
    student = job.make()
    student.set_lm(job.lm)
    optimizer = dspy.BetterTogether(metric=exact, p=dspy.BootstrapFewShot(metric=exact, max_bootstrapped_demos=2))
    return optimizer.compile(student, trainset=job.train, valset=job.dev, strategy="p", num_threads=1)


def trajectories(job: Compiling) -> dspy.Module:
    return TrajectoryFewShot(exact, max_demos=2).compile(job.make(), trainset=job.train)


OPTIMIZERS: dict[str, Callable[[Compiling], dspy.Module]] = {
    "LabeledFewShot": labeled,
    "BootstrapFewShot": bootstrap,
    "BootstrapFewShotWithRandomSearch": random_search,
    "KNNFewShot": knn,
    "COPRO": copro,
    "MIPROv2 light": mipro,
    "MIPROv2 zero-shot": mipro_zero_shot,
    "GEPA": gepa,
    "SIMBA": simba,
    "InferRules": infer_rules,
    "Ensemble": ensemble,
    "BetterTogether": better_together,
    "TrajectoryFewShot": trajectories,
}
