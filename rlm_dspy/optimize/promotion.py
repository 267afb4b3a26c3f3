"""Compares two programs on held-out examples, and saves the candidate's policy only if it is not worse."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy._dspy_compat import BaseCallback
from rlm_dspy.cache import digest
from rlm_dspy.optimize.policy_provenance import act_of, save_policy, summary
from rlm_dspy.optimize.rollouts import with_inputs_set
from rlm_dspy.optimize.statistics import paired, score_of, sign_test
from rlm_dspy.text import check_writable

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from rlm_dspy.optimize.statistics import Metric
    from rlm_dspy.optimize.traced_runs import Trace

MAX_LOSS = 0.1
MIN_EXAMPLES = 20


@dataclass(frozen=True)
class Comparison:
    """The scores of two programs on the same examples.

    Attributes:
        candidate: The candidate's scores, one per example.
        incumbent: The incumbent's.
        max_loss: The maximum loss at the lower end of the interval.
        left_out: The number of examples without scores because the incumbent or the metric raised on them.
    """

    candidate: tuple[float, ...]
    incumbent: tuple[float, ...]
    max_loss: float = MAX_LOSS
    left_out: int = 0

    @property
    def differences(self) -> list[float]:
        """Candidate's score minus incumbent's, for each example."""
        return [mine - its for mine, its in zip(self.candidate, self.incumbent, strict=True)]

    @property
    def difference(self) -> float:
        """The mean of the differences."""
        return sum(self.differences) / len(self.differences)

    @property
    def wins(self) -> int:
        """The number of examples on which the candidate scored more."""
        return sum(difference > 0 for difference in self.differences)

    @property
    def losses(self) -> int:
        """The number of examples on which the candidate scored less."""
        return sum(difference < 0 for difference in self.differences)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean difference."""
        return paired(self.differences)

    @property
    def not_worse(self) -> bool:
        """Whether the candidate scored no less, and the interval excludes a loss of `max_loss`.

        A candidate with a total score of 0 is rejected.
        """
        return any(self.candidate) and self.difference >= 0 and self.interval[0] > -self.max_loss

    @property
    def seen(self) -> str:
        """The comparison as text."""
        low, high = self.interval
        left_out = (
            f"; {self.left_out} more left out, as the incumbent or the metric failed" if self.left_out else ""
        )
        return (
            f"{self.difference:+.3f} on {len(self.differences)} examples "
            f"(95 % interval {low:+.3f} to {high:+.3f}, {self.wins} won, {self.losses} lost{left_out})"
        )

    @property
    def reason(self) -> str:
        """The decision in a sentence."""
        if self.not_worse:
            return f"Promoted: {self.seen}."
        what = f"it may be worse by {self.max_loss}: try more examples"
        if self.difference < 0:
            what = "it scored less"
        elif not any(self.candidate):
            what = "it scored nothing"
        return f"Not promoted, {what}: {self.seen}."

    def as_provenance(self) -> dict[str, Any]:
        """Return the part of the comparison that a policy file keeps."""
        return {
            "candidate": summary(self.candidate),
            "incumbent": summary(self.incumbent),
            "difference": self.difference,
            "interval_95": list(self.interval),
            "wins": self.wins,
            "losses": self.losses,
            "p": sign_test(self.wins, self.losses),
            "max_loss": self.max_loss,
            "left_out": self.left_out,
        }


def compare(
    candidate: dspy.Module,
    incumbent: dspy.Module,
    evalset: Sequence[dspy.Example],
    metric: Metric,
    *,
    max_loss: float = MAX_LOSS,
    num_threads: int = 1,
) -> Comparison:
    """Run two programs on the same examples.

    An example on which the candidate raises scores 0. If the incumbent or the metric raises, the example says
    nothing about the candidate: it is left out, and counted in `Comparison.left_out`.

    Args:
        candidate: The program with the new policy.
        incumbent: The program to compare it with.
        evalset: The examples.
        metric: `metric(example, prediction, trace=None)`, between 0 and 1.
        max_loss: The maximum loss of mean score for `Comparison.not_worse`.
        num_threads: Concurrent examples.

    Raises:
        ValueError: If an example has no inputs set; if a program or the metric raised on every example; if the
            metric returned a value outside 0 to 1.
    """
    examples = with_inputs_set(evalset)
    programs = {"candidate": candidate, "incumbent": incumbent}
    scores = [_Scored(name, program, examples, metric, num_threads) for name, program in programs.items()]
    mine, its = scores
    known = [at for at in range(len(examples)) if at not in mine.unjudged and its.scores[at] is not None]
    if not known:
        raise ValueError(f"The metric failed on every example: {(its.errors or mine.errors)[-1]!r}.")
    new, old = (tuple(each.scores[at] or 0.0 for at in known) for each in scores)
    return Comparison(new, old, max_loss, len(examples) - len(known))


class _Scored(BaseCallback):
    """The scores of a program on examples.

    Attributes:
        scores: One for each example; None if the program or the metric raised.
        unjudged: The indices of the examples on which the metric raised.
        errors: The exceptions.
    """

    def __init__(
        self, name: str, program: dspy.Module, examples: list[dspy.Example], metric: Metric, threads: int
    ) -> None:
        self.errors: list[BaseException] = []
        self.unjudged: set[int] = set()
        self._program, self._metric = program, metric
        self._places = {id(example): at for at, example in enumerate(examples)}
        self._outside: list[float] = []
        self._calls: set[str] = set()
        evaluate = dspy.Evaluate(
            devset=examples,
            metric=self._judge,
            num_threads=threads,
            max_errors=len(examples) + 1,
            display_progress=False,
            failure_score=math.nan,
        )
        with dspy.context(callbacks=[*dspy.settings.callbacks, self]):
            results = evaluate(program, callback_metadata={"metric_key": name}).results
        if self._outside:
            raise ValueError(
                f"The metric returned {self._outside[0]:g}; to compare, return scores between 0 and 1."
            )
        self.scores = [None if math.isnan(score) else float(score) for _, _, score in results]
        if self.errors and not any(score is not None for score in self.scores):
            what = "The metric" if self.unjudged else "The program"
            raise ValueError(f"{what} failed on every example: {self.errors[-1]!r}.") from self.errors[-1]

    def _judge(self, example: dspy.Example, prediction: dspy.Prediction, trace: Trace = None) -> float:
        try:
            score = score_of(self._metric(example, prediction, trace))
        except Exception as error:
            self.errors.append(error)
            self.unjudged.add(self._places[id(example)])
            raise
        if not 0 <= score <= 1:
            self._outside.append(score)
        return score

    def on_module_start(self, call_id: str, instance: Any, inputs: Mapping[str, Any]) -> None:
        """Remember the calls of the program."""
        if instance is self._program:
            self._calls.add(call_id)

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Keep the exception of a call."""
        if call_id in self._calls and exception is not None:
            self.errors.append(exception)


def promote(
    candidate: dspy.Module,
    incumbent: dspy.Module,
    evalset: Sequence[dspy.Example],
    metric: Metric,
    *,
    path: str | os.PathLike[str],
    name: str,
    seen: Sequence[dspy.Example] = (),
    max_loss: float = MAX_LOSS,
    min_examples: int = MIN_EXAMPLES,
    num_threads: int = 1,
    **provenance: Any,
) -> Comparison:
    """Write the candidate's policy to `path` if it is not worse than the incumbent; else leave the file unchanged.

    Both run on every example of `evalset`, and the comparison is kept in the policy's provenance. The candidate is
    promoted if its mean score is no less, and the lower end of the 95 % interval of the paired difference lies
    above `-max_loss`.

    Args:
        candidate: The program with the new policy.
        incumbent: The program as it is now; `with_policy` makes one of a policy.
        evalset: Held-out examples.
        metric: `metric(example, prediction, trace=None)`, between 0 and 1.
        path: The policy's file.
        name: The policy's name.
        seen: Examples used to find the candidate; `evalset` must not contain them.
        max_loss: The maximum loss, with 97.5 % confidence.
        min_examples: The minimum number of examples.
        num_threads: Concurrent examples.
        **provenance: Further arguments of `save_policy`: `model`, `predictor`, `optimizer`, `data`, `seeds`, ...

    Returns:
        The comparison; `not_worse` says whether the policy was written, `reason` why.

    Raises:
        ValueError: If there are too few examples, or some were seen; if the metric is unusable (see `compare`); if
            there are several `act` predictors and none is named, before anything is run.
        OSError: If the file cannot be written, before anything is run.
    """
    check_held_out(evalset, seen, min_examples=min_examples)
    act_of(candidate, provenance.get("predictor"))
    check_writable(path)
    compared = compare(candidate, incumbent, evalset, metric, max_loss=max_loss, num_threads=num_threads)
    if compared.not_worse:
        scores = {"held out": compared.candidate}
        save_policy(candidate, path, name=name, scores=scores, promotion=compared.as_provenance(), **provenance)
    return compared


def check_held_out(
    evalset: Sequence[dspy.Example], seen: Sequence[dspy.Example], *, min_examples: int = MIN_EXAMPLES
) -> None:
    """Check that there are enough examples, all held out, before any model call.

    Args:
        evalset: The examples.
        seen: Examples that must not be in `evalset`.
        min_examples: The minimum number.

    Raises:
        ValueError: If there are too few, or some are repeated or were seen.
    """
    if len(evalset) < min_examples:
        raise ValueError(f"{len(evalset)} examples are too few to compare policies; pass at least {min_examples}.")
    if repeated := len(evalset) - len({_inputs(example) for example in evalset}):
        raise ValueError(f"{repeated} of the {len(evalset)} examples are repeated; pass distinct ones.")
    known = {_inputs(example) for example in seen}
    if shared := sum(_inputs(example) in known for example in evalset):
        raise ValueError(f"{shared} of the {len(evalset)} examples were seen before; pass held-out ones.")


def _inputs(example: dspy.Example) -> str:
    return digest(example.inputs())
