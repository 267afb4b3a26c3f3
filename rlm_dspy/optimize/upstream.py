"""Subclasses DSPy's optimizers (3.4.1) to fix what fails when a program contains an RLM.

| optimizer | defect | fix |
|---|---|---|
| `GEPA` | finds the calls of a predictor by its signature: two RLMs have equal signatures, so each is shown the other's turns | `tell_apart` marks them |
| `GEPA` | selects every predictor in turn, also one that was not called, which wastes the iteration | `CalledPredictors` skips it |
| `SIMBA` | shows trajectories as `<non-serializable>`, and whole inputs and predictions | passes short plain data |
| `InferRules` | shows raw training examples, which lack the fields of `act`, so its rules have no basis | shows each predictor its own demos |
| `InferRules` | ends in an `AssertionError` without a message if the call for rules fails | names the cause |
| `InferRules` | changes the signature class, which the original program and all copies share | gives the candidate's predictor its own class |
| `BootstrapFinetune` | formats all calls with one adapter, and with `multitask=False` selects calls by position in the trace | uses each predictor's adapter, and selects by predictor |
| `Ensemble` | compiled members are frozen, so their state is not saved | unfreezes copies of them |
| `KNNFewShot` | passes whole inputs to the embedder | passes the beginning and end of each |

The other optimizers work unchanged. `prompt/refine_advice.py` supports `dspy.Refine`.
"""  # noqa: E501  # a table

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import dspy

from rlm_dspy._dspy_compat import BootstrapFinetune as _BootstrapFinetune
from rlm_dspy._dspy_compat import InferRules as _InferRules
from rlm_dspy._dspy_compat import append_a_rule, thaw
from rlm_dspy.inputs import Text
from rlm_dspy.json_values import jsonable
from rlm_dspy.prompt.adapter import ReplAdapter, written_reply
from rlm_dspy.prompt.nearest_demos import demos_for_run
from rlm_dspy.prompt.query import PromptAdapter
from rlm_dspy.signatures import Act, Environment
from rlm_dspy.text import cut
from rlm_dspy.trajectory import Trajectory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rlm_dspy.optimize.traced_runs import Call

    Teacher: TypeAlias = dspy.Module | list[dspy.Module | None] | None

_SHOWN_CHARS = 1_000
_SHOWN_ITEMS = 12
_SHOWN_DEPTH = 20


def tell_apart(program: dspy.Module) -> dspy.Module:
    """Mark the predictors of a program in place, so that no two signatures are equal. Prompts do not change."""
    for name, predictor in program.named_predictors():
        first = next(iter(predictor.signature.fields))
        predictor.signature = predictor.signature.with_updated_fields(first, predictor=name)
    return program


def _mark(predictor: dspy.Predict) -> str | None:
    """Return the name that `tell_apart` gave a predictor."""
    first = next(iter(predictor.signature.fields.values()))
    name: str | None = (first.json_schema_extra or {}).get("predictor")
    return name


class Turns(Protocol):
    """The part of GEPA's state that selects the next predictor."""

    list_of_named_predictors: list[str]
    named_predictor_id_to_update_next_for_program_candidate: list[int]


class CalledPredictors:
    """Chooses the predictor that GEPA reflects on: round-robin among those that the sampled runs called.

    It identifies them by the marks of `tell_apart`.
    """

    def __call__(
        self,
        state: Turns,
        trajectories: list[Mapping[str, list[Call]]],
        subsample_scores: list[float],
        candidate_idx: int,
        candidate: Mapping[str, str],
    ) -> list[str]:
        """Return one name."""
        called = {_mark(predictor) for run in trajectories for predictor, _, _ in run["trace"]}
        names = state.list_of_named_predictors
        upcoming = state.named_predictor_id_to_update_next_for_program_candidate
        order = [*names[upcoming[candidate_idx] :], *names[: upcoming[candidate_idx]]]
        chosen = next((name for name in order if name in called), order[0])
        upcoming[candidate_idx] = (names.index(chosen) + 1) % len(names)
        return [chosen]


class GEPA(dspy.GEPA):
    """`dspy.GEPA` that distinguishes the turns of two RLMs and reflects only on predictors that were called.

    Takes the arguments of `dspy.GEPA`; `rlm_dspy.optimize.with_feedback` makes its metric.
    """

    def __init__(self, metric: Callable[..., Any], **options: Any) -> None:
        super().__init__(metric, **{"component_selector": CalledPredictors(), **options})

    def compile(self, student: dspy.Module, **data: Any) -> dspy.Module:
        """Return the best candidate; `student` is not changed."""
        return super().compile(tell_apart(student.deepcopy()), **data)


class SIMBA(dspy.SIMBA):
    """`dspy.SIMBA` whose reflection sees the turns of a run, shortened. Takes the arguments of `dspy.SIMBA`."""

    def __init__(self, *, metric: Callable[..., Any], **options: Any) -> None:
        super().__init__(metric=metric, **options)
        given: list[Any] = list(vars(self)["strategies"])
        self.strategies = [_append_a_rule if each is append_a_rule else each for each in given]


@functools.wraps(append_a_rule)
def _append_a_rule(bucket: list[dict[str, Any]], system: dspy.Module, **options: Any) -> bool:
    return bool(append_a_rule([_short_run(run) for run in bucket], system, **options))


def _short_run(run: Mapping[str, Any]) -> dict[str, Any]:
    example, prediction = run["example"], run["prediction"]
    return {
        **run,
        "example": example.copy(**shown(dict(example.items()))),
        "prediction": None if prediction is None else shown(dict(prediction)),
        "trace": [(p, shown(inputs), shown(dict(outputs.items()))) for p, inputs, outputs in run["trace"]],
    }


def shown(value: Any, depth: int = _SHOWN_DEPTH) -> Any:
    """Return a value as short plain data for a model that reflects on a run.

    Args:
        value: Any value.
        depth: The number of levels to show; deeper values become a short `repr`.
    """
    if isinstance(value, str) or not depth:
        return cut(value if isinstance(value, str) else repr(value), _SHOWN_CHARS)
    if isinstance(value, Text):
        return repr(value)
    if isinstance(value, Trajectory):
        return [shown({"code": step.code, "output": step.observation}) for step in value.steps[-_SHOWN_ITEMS:]]
    if isinstance(value, dict):
        return {str(name): shown(item, depth - 1) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [shown(item, depth - 1) for item in value[-_SHOWN_ITEMS:]]
    return jsonable(value)


class InferRules(_InferRules):
    """`dspy.InferRules` that induces a predictor's rules from its own demos. Takes the same arguments."""

    def induce_natural_language_rules(self, predictor: dspy.Predict, trainset: list[dspy.Example]) -> str:
        """Return rules for one predictor; empty if no successful run called it.

        Raises:
            RuntimeError: If the model's reply held no rules.
        """
        if not _bootstrapped(predictor):
            return ""
        try:
            return str(super().induce_natural_language_rules(predictor, trainset))
        except AssertionError as error:  # DSPy raises it without a message, whatever the model call raised
            cause = error.__context__
            if not isinstance(cause, dspy.AdapterParseError):
                raise cause or error from None
            raise RuntimeError(
                "The model was asked for rules, and its reply held none. Use a stronger model: "
                "InferRules(teacher_settings={'lm': ...}), or --model; or use another optimizer."
            ) from cause

    def update_program_instructions(self, predictor: dspy.Predict, natural_language_rules: str) -> None:
        """Append rules to the instructions of a predictor, in its own signature."""
        if natural_language_rules:
            predictor.signature = predictor.signature.with_instructions(predictor.signature.instructions)
            super().update_program_instructions(predictor, natural_language_rules)

    def get_predictor_demos(self, trainset: list[dspy.Example], predictor: dspy.Predict) -> list[dict[str, str]]:
        """Return the truncated inputs and outputs of a predictor."""
        demos = _bootstrapped(predictor)
        return [{name: cut(str(value), _SHOWN_CHARS) for name, value in demo.items()} for demo in demos]


def _bootstrapped(predictor: dspy.Predict) -> list[dspy.Example]:
    return [demo for demo in predictor.demos if demo.get("augmented")]


def _short_inputs(example: dspy.Example) -> dspy.Example:
    inputs = shown(dict(example.inputs().items()))
    return dspy.Example(**inputs).with_inputs(*inputs)


class KNNFewShot(dspy.KNNFewShot):
    """`dspy.KNNFewShot` that embeds short texts. Takes the arguments of `dspy.KNNFewShot`.

    Its program recompiles at each call, so it has no state to save.
    """

    def __init__(self, k: int, trainset: list[dspy.Example], vectorizer: dspy.Embedder, **bootstrap: Any) -> None:
        super().__init__(k, [_short_inputs(example) for example in trainset], vectorizer, **bootstrap)
        neighbours: Any = vars(self)["KNN"]
        neighbours.trainset = trainset  # the examples are returned unchanged
        self.KNN = lambda **inputs: neighbours(**shown(inputs))


class Ensemble(dspy.Ensemble):
    """`dspy.Ensemble` whose program saves and loads the state of its members."""

    def compile(self, programs: list[dspy.Module]) -> dspy.Module:
        """Return a program that calls each of `programs` and reduces their answers."""
        members = [program.deepcopy() for program in programs]
        for member in members:
            for _, module in member.named_sub_modules(dspy.Module):
                thaw(module)
        return super().compile(members)


class EachItsOwn(dspy.ChatAdapter):
    """Formats the calls of a predictor with its own adapter, others with `ChatAdapter`."""

    def format_finetune_data(
        self,
        signature: type[dspy.Signature],
        demos: list[dict[str, Any]],
        inputs: Mapping[str, Any],
        outputs: dspy.Prediction,
    ) -> dict[str, list[Any]]:
        """Return `{"messages": [...]}`: the messages, then the reply."""
        own: dspy.Adapter
        if set(signature.fields) == set(Act.fields):
            own, reply = ReplAdapter(), written_reply(outputs.reasoning or "", outputs.code or "")
        elif set(signature.fields) == {"prompt", "response"}:
            own, reply = PromptAdapter(), str(outputs.response)
        else:
            data: dict[str, list[Any]] = super().format_finetune_data(signature, demos, inputs, outputs)
            return data
        messages = own.format(signature, demos, inputs)
        return {"messages": [*messages, {"role": "assistant", "content": reply}]}


def _as_shown(call: Any) -> Any:
    """Return a call of a trace, whose predictor has only the demos that the call showed."""
    predictor, inputs, outputs = call
    if getattr(predictor, "demos_per_run", None) is None:
        return call
    shown = copy.copy(predictor)
    shown.demos = demos_for_run(predictor, Environment.of(inputs["environment"]), predictor.demos_per_run)
    return shown, inputs, outputs


class BootstrapFinetune(_BootstrapFinetune):
    """`dspy.BootstrapFinetune` with the messages that each predictor really sends. Takes the same arguments.

    With `multitask=False` there is one job per predictor, with its calls.
    """

    def __init__(self, metric: Callable[..., Any] | None = None, **options: Any) -> None:
        super().__init__(metric, **{"adapter": EachItsOwn(), **options})

    def _prepare_finetune_data(
        self, trace_data: list[dict[str, Any]], lm: dspy.LM, pred_ind: int | None = None
    ) -> tuple[list[dict[str, Any]], Any]:
        if pred_ind is not None:
            trace_data = [
                {**run, "trace": [call for call in run["trace"] if self._names[id(call[0])] == pred_ind]}
                for run in trace_data
            ]
        trace_data = [{**run, "trace": list(map(_as_shown, run["trace"]))} for run in trace_data]
        data: tuple[list[dict[str, Any]], Any] = super()._prepare_finetune_data(trace_data, lm, None)
        return data

    def compile(self, student: dspy.Module, trainset: list[dspy.Example], teacher: Teacher = None) -> dspy.Module:
        """Return the student with the fine-tuned LMs."""
        teachers = teacher if isinstance(teacher, list) else [teacher or student]
        self._names = {id(p): at for program in teachers for at, p in enumerate((program or student).predictors())}
        return super().compile(student, trainset, teacher)
