"""Shows predictions and modules in notebooks, in IPython and in rich."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import dspy
from pydantic_core import core_schema

from rlm_dspy.json_values import jsonable
from rlm_dspy.report.record import record_of

if TYPE_CHECKING:
    import os

    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema
    from rich.console import RenderableType, RichCast

    from rlm_dspy.artifacts import Artifacts
    from rlm_dspy.events import RunEvent
    from rlm_dspy.report.notebook import ReportPage
    from rlm_dspy.report.record import Record
    from rlm_dspy.subcalls.interface import Program
    from rlm_dspy.trajectory import Place

_OF_THE_RUN = frozenset({"stop", "usage", "artifacts", "trajectory", "final_reasoning", "agreement"})
# What draws is imported when something is drawn: templates and rich take time to import.


class _Printer(Protocol):
    """What IPython hands to `_repr_pretty_`."""

    def text(self, text: str) -> None: ...


class _InIPython:
    """Shows an object in a terminal's IPython as rich does."""

    def _repr_pretty_(self: RichCast, printer: _Printer, cycle: bool) -> None:
        from rlm_dspy.report.notebook import as_text  # noqa: PLC0415

        printer.text(as_text(self))


class ShowsItself(_InIPython):
    """Lets notebooks and rich show an RLM: its signature, model, limits, tools, subs and demos."""

    def __rich__(self: Program) -> RenderableType:
        from rlm_dspy.report.notebook import module_text  # noqa: PLC0415

        return module_text(self)

    def _repr_html_(self: Program) -> str:
        from rlm_dspy.report.notebook import module_html  # noqa: PLC0415

        return module_html(self)


class RunPrediction(_InIPython, dspy.Prediction):
    """What an RLM returns: a `dspy.Prediction` that also knows its run.

    A notebook, IPython and `rich.print` show the answer, why the run ended, what it used, its turns, and the
    pictures that its code made. `prediction.report("run.html")` writes the run as an HTML page; `report()` only
    returns it. A notebook shows the returned page inline. Copies, pickled ones too, know their run as well.
    Output fields named `report` or `sources` take precedence.

    Attributes:
        stop: Why the run ended: `submitted`, `extracted`, `unanswered` or `direct`; see `RLM.forward`.
        trajectory: The turns, as dicts of the fields of `rlm_dspy.trajectory.Step`.
        usage: What the run used, as a dict of the fields of `rlm_dspy.usage.RunUsage`.
        artifacts: The files that code wrote, by name.
        final_reasoning: The text around the code that submitted; else how the answer was found, or why there
            is none.
        sources: The places in the inputs that each output field came from (`rlm_dspy.trajectory.Place`); a field
            or value without a certain place has none. See `rlm_dspy.grounding`.
    """

    stop: str
    trajectory: list[dict[str, Any]]
    usage: dict[str, Any]
    artifacts: Artifacts
    final_reasoning: str | None
    sources: dict[str, list[Place]]

    def __init__(self, base: dict[str, Any] | dspy.Prediction | None = None, **fields: Any) -> None:
        super().__init__(base, **fields)
        self._record: Record | None = base._record if isinstance(base, RunPrediction) else None  # noqa: SLF001

        self._is_shown = False

    def __getattr__(self, name: str) -> Any:
        """Return an output field; `report` and `sources` are of the run unless they are output fields."""
        if name == "sources" and name not in self:
            return {} if self._record is None else self._record.sources
        return self._report if name == "report" and name not in self else super().__getattr__(name)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Serialize the outputs alone: what the model of a `dspy.ReAct` reads of an RLM that is its tool."""
        return core_schema.any_schema(serialization=core_schema.plain_serializer_function_ser_schema(_outputs_of))

    def outputs_alone(self) -> dict[str, Any]:
        """Return the outputs without trajectory, usage and files: what code in a REPL gets of a prediction."""
        outputs = self._record.outputs if self._record else {}
        return {name: value for name, value in self.items() if name in outputs or name not in _OF_THE_RUN}

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.keys(), "report", "sources"]

    def _report(self, path: str | os.PathLike[str] | None = None) -> ReportPage:
        """Return the report of the run as an HTML page, which a notebook shows inline.

        Args:
            path: Also write the page to this file; an existing one is replaced.

        Raises:
            ValueError: If no run made this prediction.
            OSError: If the file cannot be written.
        """
        from rlm_dspy.report.notebook import ReportPage  # noqa: PLC0415

        if (record := self._run()) is None:
            raise ValueError("This prediction was not returned by a run, so it has no report.")
        return ReportPage.of(record, path)

    def _run(self) -> Record | None:
        """Return the record of the run with the outputs that this prediction has now."""
        if (record := self._record) is None:
            return None
        outputs = {name: jsonable(self[name]) for name in record.outputs if name in self}
        return record.model_copy(update={"outputs": outputs})

    def __rich__(self) -> RenderableType:
        from rlm_dspy.report.notebook import prediction_text  # noqa: PLC0415

        return repr(self) if (record := self._run()) is None else prediction_text(record)

    def _repr_html_(self) -> str | None:
        from rlm_dspy.report.notebook import prediction_html  # noqa: PLC0415

        return None if (record := self._run()) is None else prediction_html(record)

    def _render_traceback_(self) -> list[str]:
        """Show the run, and return a line in the place of a traceback: IPython calls it for an interrupt."""
        from IPython.display import display  # noqa: PLC0415

        if not self._is_shown:  # IPython asks again to store the outputs of the cell
            display(self)
            self._is_shown = True
        return ["KeyboardInterrupt: the part of the run above is also in `sys.last_value.prediction`."]


def _outputs_of(prediction: RunPrediction) -> dict[str, Any]:
    record = prediction._run()  # noqa: SLF001
    return dict(prediction.items()) if record is None else record.outputs


def prediction_of(run: RunEvent) -> RunPrediction:
    """Return the prediction of a run that has just ended in this context, by its outcome or its error."""
    outcome, record = run.outcome, record_of(run, digests=False)
    report = {
        "stop": record.stop,
        "usage": outcome.usage.model_dump(),
        "artifacts": outcome.artifacts,
        "trajectory": [step.model_dump() for step in outcome.steps],
        "final_reasoning": outcome.final_reasoning,  # the last: dspy.majority counts by it without a signature
    }
    # Not by keyword: an output named `base` would be lost. Outputs take precedence over the other fields.
    outputs = dict(outcome.outputs) or dict.fromkeys(run.signature.output_fields)
    prediction = RunPrediction({**outputs, **report, **outcome.outputs})
    prediction._record = record  # noqa: SLF001
    return prediction


def carry(error: BaseException, prediction: RunPrediction) -> None:
    """Attach what there is of a run to an error that leaves it. IPython shows an interrupt as that alone.

    Args:
        error: The error that leaves the run. Its type is unchanged.
        prediction: What there is: `error.prediction`. Its trajectory, usage and artifacts also become
            `error.trajectory`, `.usage` and `.artifacts`.
    """
    shown = {"_render_traceback_": prediction._render_traceback_} if isinstance(error, KeyboardInterrupt) else {}
    known = {name: prediction[name] for name in ("trajectory", "usage", "artifacts")}
    vars(error).update(known, prediction=prediction, **shown)
    if turns := len(prediction.trajectory):
        error.add_note(f"RLM: {turns} step(s) were taken before this; they are in `error.trajectory`.")
