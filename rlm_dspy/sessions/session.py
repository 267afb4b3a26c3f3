"""Defines `Session`: calls of one RLM that share a REPL and a conversation."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, Self, get_args

import dspy

from rlm_dspy.concurrency.turn import Turn
from rlm_dspy.concurrency.wait_scope import running_loop
from rlm_dspy.errors import InvalidInputs, LimitExceeded
from rlm_dspy.limits import Limits, limits_of_budget
from rlm_dspy.report.representation import RunPrediction
from rlm_dspy.sessions.saved import KnownFiles, SavedSession, digests_of
from rlm_dspy.sessions.state import SessionState, called, inside_of
from rlm_dspy.sessions.variables import Variables, variables_of
from rlm_dspy.subcalls.ad_hoc import written
from rlm_dspy.text import clip, logger, write_whole
from rlm_dspy.trajectory import Step
from rlm_dspy.usage import CAPS, RunUsage, Usage

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Iterator, Mapping

    from rlm_dspy.compute import Compute

_CAPS = {**CAPS, "max_seconds": "seconds"}
"""The limits of a session, and the field of `RunUsage` that each bounds."""
_LOOK_SECONDS = 0.02
_HISTORY_CHARS = 4_000
"""Of what was said before a session, as the model is shown it."""
_FIELD_CHARS = 1_000
_logger = logger()


class Answers(Protocol):
    """What a session calls: an RLM."""

    signature: type[dspy.Signature]
    limits: Limits
    compute: Compute

    def __call__(self, **inputs: Any) -> RunPrediction:
        """Run."""

    async def acall(self, **inputs: Any) -> RunPrediction:
        """Await a run."""


class Session:
    r"""Calls of one RLM that share a REPL and a conversation; made by `rlm.session(...)`.

    Each call is a run of its own, with its own limits, trajectory and usage. Its code finds the variables,
    functions and imports of the calls before; inputs are bound anew for each call. The model reads the turns
    before, which are summarized when they no longer fit its window. A call that fails or is interrupted leaves the
    session usable.

    One call runs at a time: others, from other threads or tasks, wait for it.

    Args:
        rlm: The RLM that is called.
        inputs: The inputs of every call that does not give its own; a `dspy.History` is what was said before.
        budget: See `HasSessions.session`.
        saved: The saved session that goes on.
        path: Its file.

    Attributes:
        inputs: The inputs of every call that does not give its own.
        messages: The inputs that each call gave, and its outputs.

    Examples:
        >>> from rlm_dspy import RLM
        >>> from rlm_dspy.testing import ScriptedLM
        >>> codes = ["```python\nn = len(context)\nSUBMIT(answer=n)\n```", "```python\nSUBMIT(answer=2 * n)\n```"]
        >>> rlm = RLM("context, question -> answer: int")
        >>> with dspy.context(lm=ScriptedLM(codes)), rlm.session(context="banana") as session:
        ...     session(question="How long is it?").answer, session(question="And twice that?").answer
        (6, 12)
    """

    def __init__(
        self,
        rlm: Answers,
        inputs: Mapping[str, Any],
        budget: Limits | float | None = None,
        saved: SavedSession | None = None,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        self._rlm = rlm
        self._budget = None if budget is None else limits_of_budget(budget, _CAPS, "call")
        self._state = SessionState() if saved is None else saved.state()
        self._used = [RunUsage() if saved is None else saved.usage]
        self._turn = Turn()
        self._closed = False
        self._files = KnownFiles()
        if path is not None:
            self._files.note(path)
        self.messages: list[dict[str, Any]] = [] if saved is None else list(saved.messages)
        said = [value for value in inputs.values() if isinstance(value, dspy.History)]
        self.inputs = {name: value for name, value in inputs.items() if not isinstance(value, dspy.History)}
        fields = rlm.signature.input_fields
        if unknown := self.inputs.keys() - fields.keys():
            raise InvalidInputs(f"The signature takes the inputs {list(fields)}; unknown: {sorted(unknown)}.")
        for history in said:
            self._begin_after(history)
        if saved is not None:
            self._note_changed(saved)

    @property
    def id(self) -> str:
        """Identifies the session: `session` in event logs; in MLflow the session of its traces."""
        return self._state.id

    @property
    def history(self) -> dspy.History:
        """What was asked and answered, also before the session: for a `dspy.History` field, or another session."""
        return dspy.History(messages=[dict(message) for message in self.messages])

    @property
    def usage(self) -> RunUsage:
        """The usage of all calls, failed ones included, and of those before it was saved."""
        total = sum(self._used, Usage())
        models = {name for each in self._used for name in each.by_model}
        by_model = {
            name: sum((each.by_model.get(name, Usage()) for each in self._used), Usage()) for name in models
        }
        seconds = sum(each.seconds for each in self._used)
        return RunUsage(**total.model_dump(), seconds=seconds, by_model=by_model)

    @property
    def trajectory(self) -> list[dict[str, Any]]:
        """The steps of all calls, as `prediction.trajectory` has those of one."""
        return [step.model_dump() for step in self._state.steps]

    @property
    def lost(self) -> dict[str, str]:
        """Why variables of a saved session are lost, by name; complete after the first call."""
        return dict(self._state.lost)

    def __call__(self, **inputs: Any) -> RunPrediction:
        """Ask, with the inputs that the session does not have; see `RLM.forward`.

        Raises:
            LimitExceeded: If the session's budget is used up.
            RuntimeError: If the session is closed, its own run calls it, or a call that is awaited on the running
                event loop would have to end first.
        """
        self._check_open()
        with self._alone(wait=running_loop() is None), self._calling(inputs) as given:
            return self._answered(given, self._rlm(**given))

    async def acall(self, **inputs: Any) -> RunPrediction:
        """Ask like `__call__`, on the running event loop."""
        self._check_open()
        async with self._waiting():
            with self._calling(inputs) as given:
                return self._answered(given, await self._rlm.acall(**given))

    def save(self, path: str | os.PathLike[str]) -> dict[str, str]:
        """Write the session to a file as JSON, for `rlm.open_session(path, ...)`, also in another process.

        The file holds the conversation, the steps, the variables that can be pickled, and the sources of functions
        and classes; no inputs, no settings of the RLM. With interpreters that are not of `rlm_dspy.interpreters`,
        variables are lost.

        Args:
            path: The file; an existing one is replaced.

        Returns:
            Why variables are not in the file, by name.

        Raises:
            FileExistsError: If the file was changed since this session read or wrote it.
            OSError: If the file cannot be written.
            RuntimeError: If the session is closed, or a call is running.
        """
        self._check_open()
        with self._alone(wait=False):
            self._files.check(path)
            state = self._state
            variables = state.saved or Variables()
            if state.interpreter is not None:
                variables = variables_of(state.interpreter, (step.code for step in state.steps))
            saved = SavedSession.of(state, self._rlm.signature, self.inputs, self.messages, self.usage, variables)
            write_whole(saved.as_json() + "\n", path)
            self._files.note(path)
        if variables.lost:
            _logger.warning("Not in the saved session: %s", variables.lost)
        return dict(variables.lost)

    def close(self) -> None:
        """Shut the REPL down; a call that runs in another thread ends first."""
        with self._alone(wait=running_loop() is None):
            self._shut_down()

    def _shut_down(self) -> None:
        self._closed = True
        interpreter, self._state.interpreter = self._state.interpreter, None
        if interpreter is not None:
            interpreter.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        async with self._waiting():
            self._shut_down()

    def _begin_after(self, history: dspy.History) -> None:
        """Begin with what was said before."""
        if self.messages:
            raise InvalidInputs("A saved session goes on with its own history; give the other one to rlm.session.")
        names = {*self._rlm.signature.input_fields, *self._rlm.signature.output_fields}
        kept = ({name: value for name, value in each.items() if name in names} for each in history.messages)
        self.messages = [message for message in kept if message]
        said = "\n".join(
            "\n".join(f"{name}: {clip(str(value), _FIELD_CHARS)}" for name, value in message.items())
            for message in self.messages
        )
        if said:
            text = f"Said before in this conversation:\n{clip(said, _HISTORY_CHARS)}"
            self._state.shown = (Step(kind="folded", output=text),)

    def _note_changed(self, saved: SavedSession) -> None:
        """Tell the model and the log of inputs that are others than when the session was saved."""
        now = digests_of({name: value for name, value in self.inputs.items() if name in saved.digests})
        if changed := [name for name, digest in now.items() if digest != saved.digests[name]]:
            warning = f"{', '.join(changed)}: another value than when the session was saved."
            _logger.warning("%s", warning)
            self._state.notes.append(warning)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("This session is closed. Call it inside its `with`, or open another.")
        if inside_of(self._state):
            raise RuntimeError("A session cannot be called by its own run. Open another: rlm.session(...).")

    @contextlib.contextmanager
    def _alone(self, *, wait: bool) -> Iterator[None]:
        while True:
            with self._turn.tried() as is_free:
                if is_free:
                    yield
                    return
            if not wait:
                raise RuntimeError("A call of this session is running. Await it first; use session.acall(...).")
            time.sleep(_LOOK_SECONDS)

    @contextlib.asynccontextmanager
    async def _waiting(self) -> AsyncIterator[None]:
        while True:
            with self._turn.tried() as is_free:
                if is_free:
                    yield
                    return
            await asyncio.sleep(_LOOK_SECONDS)  # other threads may have it

    @contextlib.contextmanager
    def _calling(self, inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the inputs of a call, which is made in this scope."""
        self._check_open()
        if self._rlm.compute.votes > 1:
            raise ValueError("A call of a session is one run: set rlm.compute = Compute(votes=1).")
        state, taken = self._state, len(self._state.steps)
        state.limits = self._limits_left()
        try:
            with called(state):
                yield self._inputs_of(inputs)
        except BaseException as error:
            if isinstance(part := getattr(error, "prediction", None), RunPrediction):
                self._used.append(RunUsage.model_validate(part.usage))
            if len(state.steps) > taken:
                state.ended = "That call ended with an error, without an answer."
            raise

    def _inputs_of(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs of a call; a `dspy.History` field is what was said so far."""
        given = {**self.inputs, **inputs}
        for name, field in self._rlm.signature.input_fields.items():
            kinds = (field.annotation, *get_args(field.annotation))
            if name not in given and dspy.History in kinds:
                given[name] = self.history
        return given

    def _answered(self, given: Mapping[str, Any], prediction: RunPrediction) -> RunPrediction:
        """Record a call that ended normally; return its prediction."""
        outputs = {name: prediction.get(name) for name in self._rlm.signature.output_fields}
        asked = {name: value for name, value in given.items() if not isinstance(value, dspy.History)}
        asked = {name: value for name, value in asked.items() if value is not self.inputs.get(name)}
        self._used.append(RunUsage.model_validate(prediction.usage))
        state, found = self._state, any(value is not None for value in outputs.values())
        if found:
            self.messages.append({**asked, **outputs})
        if state.steps and state.steps[-1].kind == "submitted":
            state.ended = "The answer was accepted."
        elif found:
            state.ended = f"No SUBMIT; the answer was read from the turns: {clip(repr(outputs), _FIELD_CHARS)}"
        else:
            state.ended = "That call ended without an answer."
        return prediction

    def _limits_left(self) -> Limits:
        """Return the limits of the next call: those of the RLM, as far as the budget allows.

        Raises:
            LimitExceeded: If it allows nothing.
        """
        own, budget, used = self._rlm.limits, self._budget, self.usage
        if budget is None:
            return own
        left: dict[str, Any] = {}
        for name, unit in _CAPS.items():
            if (cap := getattr(budget, name)) is not None:
                left[name] = min(cap - (getattr(used, unit) or 0), getattr(own, name) or math.inf)
                if left[name] <= 0:
                    raise LimitExceeded(f"The session has used up its budget of {name}={cap:g}.", name)
        return replace(own, prices={**own.prices, **budget.prices}, **left)


class HasSessions:
    """Gives an RLM `session` and `open_session`."""

    def session(self: Answers, *, budget: Limits | float | None = None, **inputs: Any) -> Session:
        """Open a session: calls that share a REPL and a conversation. Close it, or use it in `with`.

        Args:
            budget: USD for all calls together, or a `Limits` of `max_cost`, `max_input_tokens`,
                `max_output_tokens` and `max_seconds` (and `prices`); `rlm.limits` bound each call.
            **inputs: The inputs of every call that does not give its own. A `dspy.History`, under any name, is
                what was said before, by the fields of the signature. A field of that type is given to each call.

        Raises:
            InvalidInputs: If the signature has no such input.
            ValueError: If the budget bounds nothing, or something that only one call has.
        """
        return Session(self, inputs, budget)

    def open_session(
        self: Answers, path: str | os.PathLike[str], *, budget: Limits | float | None = None, **inputs: Any
    ) -> Session:
        """Open a session that `Session.save` wrote, to go on with it.

        Its variables are read by the REPL at the first call, never in this process, unless the interpreter is one
        that runs code in it: such an interpreter trusts the file as it trusts the model. The model is told which
        variables are kept and which are lost, and whether an input is another than before.

        Args:
            path: The file.
            budget: As in `session`; what was used before it was saved counts.
            **inputs: The inputs, which the file does not hold.

        Raises:
            ValueError: If it is not such a file, or one of another signature.
        """
        saved = SavedSession.load(path)
        if saved.signature != written(self.signature):
            raise ValueError(
                f"{path} is a session of the signature {saved.signature!r}, and this RLM has "
                f"{written(self.signature)!r}. Open it with an RLM of the former."
            )
        return Session(self, inputs, budget, saved, path)
