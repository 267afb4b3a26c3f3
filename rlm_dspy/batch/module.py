"""Defines `on`, which makes of a program a module whose calls run on an executor."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy.batch.engine import Engine, Job, check
from rlm_dspy.budget.metered_lm import meters_in_force

if TYPE_CHECKING:
    import os

    from rlm_dspy.batch.engine import Workers
    from rlm_dspy.batch.task import Outcome


def on(program: dspy.Module, executor: Workers = None, folder: str | os.PathLike[str] | None = None) -> On:
    """Return a module that calls a program on an executor.

    `dspy.Evaluate`, `TrajectoryFewShot`, `GEPA` and whatever else calls a module run through it, as many calls at
    once as they make. The result is as if the program had run here: prediction or error, the trace that
    optimizers learn from, and usage. Callbacks hear only runs in threads.

    Args:
        program: Any module; after an optimization it is the attribute `program` of the optimized module.
        executor: As in `rlm_dspy.batch.run`. The runs of a worker that was killed are run again.
        folder: A folder that all workers see, if they are on other machines; default: one for temporary files.

    Raises:
        TypeError: If `program` or `executor` is something else.

    Examples:
        >>> import dspy
        >>> from concurrent.futures import ProcessPoolExecutor
        >>> from rlm_dspy import RLM, batch
        >>> program = batch.on(RLM("context, question -> answer"), executor=lambda: ProcessPoolExecutor(4))
        >>> evaluate = dspy.Evaluate(devset=[], metric=None, num_threads=4)  # and then evaluate(program)
    """
    check(program, executor)
    return On(program, Engine(executor, None if folder is None else Path(folder)))


class On(dspy.Module):
    """A program whose calls run on an engine; made by `on`.

    Attributes:
        program: The program; its predictors are those of this module.
        engine: Where it runs; copies of the module share it. `engine.close()` ends its processes, which else end
            with this process.
    """

    def __init__(self, program: dspy.Module, engine: Engine) -> None:
        super().__init__()
        self.program = program
        self.engine = engine

    def forward(self, **inputs: Any) -> Any:
        """Run the program on its inputs.

        Returns:
            What it returns.

        Raises:
            Exception: What it raised.
            WorkersLost: If workers died again and again.
            TypeError: If the program or its inputs cannot be sent to other processes.
        """
        job, outcome = Job(self.program, inputs, traced=True), None
        while outcome is None:
            outcome = self.engine.outcome(job, self.engine.submit(job))
        return self._result_of(outcome)

    async def aforward(self, **inputs: Any) -> Any:
        """Run like `forward`, without blocking the running event loop."""
        job, outcome = Job(self.program, inputs, traced=True), None
        while outcome is None:
            future = self.engine.submit(job)
            await asyncio.wait([asyncio.wrap_future(future)])
            outcome = self.engine.outcome(job, future)
        return self._result_of(outcome)

    def _result_of(self, outcome: Outcome) -> Any:
        """Return the prediction or raise the error; enter trace and usage of another process here."""
        if outcome.trace is not None:
            predictors = dict(self.program.named_predictors())
            if dspy.settings.trace is not None:
                dspy.settings.trace.extend((predictors.get(who, who), *call) for who, *call in outcome.trace)
            if (tracker := dspy.settings.usage_tracker) is not None:
                for model, entries in outcome.reported.items():
                    for entry in entries:
                        tracker.add_usage(model, entry)
            for meter in meters_in_force():
                for model, used in outcome.usage.by_model.items():
                    meter.ledger.settle(meter.role, model, used)
        if outcome.error is not None:
            raise outcome.error
        return outcome.prediction
