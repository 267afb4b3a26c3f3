"""Defines `SessionState`: what a run takes over from the earlier calls of its session, and leaves to the next."""

from __future__ import annotations

import contextlib
import functools
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import dspy

from rlm_dspy.interpreters.worker.cell import SETUP
from rlm_dspy.repl.bootstrap import RESTORE_INPUTS
from rlm_dspy.sessions.variables import ALL, Variables, restore
from rlm_dspy.subcalls.dispatch import Tree
from rlm_dspy.text import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rlm_dspy.cache import SubCallCache
    from rlm_dspy.limits import Limits
    from rlm_dspy.signatures import Environment
    from rlm_dspy.subcalls.interface import Factory
    from rlm_dspy.trajectory import Step, Trajectory

_KEPT = "Your variables, functions and imports are kept."
_DIED = "The interpreter died between the calls: your own variables, functions and imports are lost."
_OPENED = "The session was saved and opened again."
_logger = logger()
_NAMES = 30
"""Names of variables that the model is told."""


class Shown(Protocol):
    """The messages of a run: the first one, and the steps after it."""

    environment: Environment
    trajectory: Trajectory


class EndedRun(Protocol):
    """A run that has ended: its steps, and the first message that it would have had alone."""

    steps: list[Step]
    environment: Environment

    @property
    def conversation(self) -> Shown:
        """What the model was shown."""


@dataclass(eq=False)
class SessionState:
    """The state of a session between its calls.

    Attributes:
        id: Identifies the session in logs and traces.
        limits: The limits of the call that is made; None for those of the module.
        steps: The steps of the calls so far.
        shown: The steps as the model is shown them.
        first: The first message, before them; None until a call was made.
        ended: How the last call ended, as the model is told.
        notes: What else the model is told at the next call.
        saved: The variables of a saved session, until a REPL has them.
        lost: Why variables are lost, by name.
        interpreter: The interpreter, between two calls.
        waits: Whether a call waits for its run to begin.
    """

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    limits: Limits | None = None
    steps: list[Step] = field(default_factory=list)
    shown: tuple[Step, ...] = ()
    first: Environment | None = None
    ended: str = ""
    notes: list[str] = field(default_factory=list)
    saved: Variables | None = None
    lost: dict[str, str] = field(default_factory=dict)
    interpreter: dspy.CodeInterpreter | None = None
    waits: bool = False
    _last: Environment | None = None
    _tree: Tree | None = None
    _had_repl: bool = False
    _is_lent: bool = False

    def tree(self, cache: SubCallCache | bool) -> Tree:
        """Return what the runs of the session share: answers of sub-calls, media, files."""
        if self._tree is None or self._tree.given is not cache:
            self._tree = Tree(cache)
        return self._tree

    def go_on(self, environment: Environment) -> tuple[Environment, tuple[Step, ...]]:
        """Return the first message and the steps that a run begins with.

        What was sent before is sent again as it was; the task of this call is the notice of the last step.

        Args:
            environment: The first message that the run would have alone.
        """
        if not self.shown or self.first is None:  # at most what was said before the session
            return environment, self.shown
        same = (name for name in ("functions", "runtime") if self._last and _same(name, self._last, environment))
        next_call = environment.model_copy(update=dict.fromkeys(same, ""))
        sentences = [self.ended, "The next call has begun.", *(self.notes or [_KEPT]), str(next_call)]
        *before, newest = self.shown
        notice = "\n\n".join(filter(None, sentences))
        return self.first, (*before, newest.model_copy(update={"notice": notice}))

    def lending(self, make: Factory) -> tuple[Factory, Callable[[dspy.CodeInterpreter], None]]:
        """Return the factory of a run that gets the session's interpreter, and what takes it back."""
        return functools.partial(self._borrow, make), self._give_back

    def _borrow(self, make: Factory) -> dspy.CodeInterpreter:
        """Return the session's interpreter, or a new one if it has none or it has died."""
        found, self.interpreter = self.interpreter, None
        if found is not None and not self._answers(found):
            found = None
        if found is None and self._had_repl and not self._is_lent:
            self.notes.append(_DIED)
            _logger.warning("RLM session: %s", _DIED)
        self._had_repl = self._is_lent = True
        return found or make()

    def _answers(self, interpreter: dspy.CodeInterpreter) -> bool:
        """Whether an interpreter still runs code; its process may have died meanwhile."""
        try:
            interpreter.execute(SETUP + RESTORE_INPUTS, variables={})
        except dspy.CodeExecutionError as error:  # it has, and a checkpoint took its place
            self.notes.append(str(error))
        except dspy.CodeInterpreterError:
            interpreter.shutdown()
            return False
        return True

    def opened(self, interpreter: dspy.CodeInterpreter | None) -> None:
        """Restore the variables of a saved session in the REPL of a run."""
        if self.saved is None or interpreter is None:
            return
        saved, self.saved = self.saved, None
        lost = {**saved.lost, **restore(interpreter, saved)}
        self.lost |= lost
        kept = [name for name in saved.names if name not in lost and ALL not in lost]
        files = "" if getattr(interpreter, "in_host", False) else " Files that code wrote are not kept."
        self.notes.append(f"{_OPENED} Kept: {_listed(kept)}. Lost: {_listed(list(lost))}.{files}")
        if lost:
            _logger.warning("RLM session: lost since it was saved: %s", lost)

    def _give_back(self, interpreter: dspy.CodeInterpreter) -> None:
        self.interpreter = interpreter

    def took(self, run: EndedRun) -> None:
        """Take what a run leaves to the next call."""
        self._is_lent = False
        if run.steps:  # else the model was told nothing
            self.steps += run.steps
            self.shown, self.first = run.conversation.trajectory.steps, run.conversation.environment
            self._last, self.notes = run.environment, []


def _same(name: str, one: Environment, other: Environment) -> bool:
    return bool(getattr(one, name) == getattr(other, name))


def _listed(names: list[str]) -> str:
    return ", ".join([*names[:_NAMES], *(["..."] if len(names) > _NAMES else [])]) or "nothing"


_called: ContextVar[SessionState | None] = ContextVar("_called", default=None)


@contextlib.contextmanager
def called(state: SessionState) -> Iterator[None]:
    """Let the first run that begins in this scope be a call of a session."""
    token, state.waits = _called.set(state), True
    try:
        yield
    finally:
        state.waits = False
        _called.reset(token)


def inside_of(state: SessionState) -> bool:
    """Whether this is inside a call of a session."""
    return _called.get() is state


def taken_session() -> SessionState | None:
    """Return the session as `calling_session` does, for the run that is its call."""
    if (state := calling_session()) is not None:
        state.waits = False
    return state


def calling_session() -> SessionState | None:
    """Return the session whose call waits for its run to begin; None if there is none."""
    state = _called.get()
    return state if state is not None and state.waits else None
