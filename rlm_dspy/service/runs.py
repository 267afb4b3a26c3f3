"""Runs a program for requests: so many at once, within limits, and no longer than its client is there."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import dspy
from starlette.exceptions import HTTPException

from rlm_dspy.concurrency.timeouts import await_in_thread
from rlm_dspy.errors import InvalidInputs, LimitExceeded
from rlm_dspy.loop.rlm import RLM
from rlm_dspy.redaction import lms_of, safe_message
from rlm_dspy.service.mapping import read_inputs
from rlm_dspy.service.trajectory_text import TrajectoryText
from rlm_dspy.text import logger

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping

    from starlette.types import Receive

    from rlm_dspy.limits import Limits
    from rlm_dspy.service.conversations import Conversation
    from rlm_dspy.service.metrics import Metrics
    from rlm_dspy.service.requests import Ask
    from rlm_dspy.usage import Usage

_HEARTBEAT_SECONDS = 15.0
_PAID = {"x-should-retry": "false"}
"""Otherwise the client of OpenAI makes the whole run again, twice; what may pass, the run has retried."""
_logger = logger()


@dataclass(frozen=True)
class Finished:
    """A run that ended with a prediction.

    Attributes:
        outputs: The output fields by name.
        stop: As `prediction.stop`.
        usage: What it used.
        prediction: What the program returned.
    """

    outputs: dict[str, Any]
    stop: str
    usage: Usage
    prediction: dspy.Prediction


class Runs:
    """Runs a program in the context in which this is made: its LM is the one that is configured there.

    Args:
        program: The program. Runs share it.
        most: How many runs may go on at once.
        metrics: Counts them.
    """

    def __init__(self, program: dspy.Module, most: int, metrics: Metrics) -> None:
        self.program = program
        self.signature: type[dspy.Signature] = program.signature
        self._most, self._metrics = most, metrics
        self._context = contextvars.copy_context()

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Hold the place of one run in this scope.

        Raises:
            HTTPException: With status 429, if there is none.
        """
        if self._metrics.in_progress >= self._most:
            raise HTTPException(
                429, f"The server runs {self._most} requests at once. Try again later.", {"Retry-After": "1"}
            )
        with self._metrics.run_in_progress():
            yield

    async def pieces(self, ask: Ask, conversation: Conversation | None = None) -> AsyncGenerator[str | Finished]:
        """Run the program, and yield its trajectory as text, piece by piece, and the result at last.

        An empty piece tells that the run goes on. Closing the generator ends the run.

        Args:
            ask: The request; if it is streamed, what the model writes is yielded while it writes it.
            conversation: Its conversation, which no other run uses.

        Raises:
            HTTPException: If the run failed; see `as_http`.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[str | None] = asyncio.Queue()
        told = TrajectoryText(
            lambda text: loop.call_soon_threadsafe(queue.put_nowait, text), hears_chunks=ask.stream
        )
        run = loop.create_task(self._run(ask, conversation, told), context=self._context.copy())
        run.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            while True:
                try:
                    async with asyncio.timeout(_HEARTBEAT_SECONDS):  # wait_for may lose a cancellation
                        piece = await queue.get()
                except TimeoutError:
                    piece = ""
                if piece is None:
                    break
                yield piece
            yield await run
        finally:
            run.cancel()
            await asyncio.wait([run])

    async def _run(self, ask: Ask, conversation: Conversation | None, told: TrajectoryText) -> Finished:
        began, end = time.monotonic(), "failed"
        try:
            program, kept = self._limited(ask.limits, conversation)
            with contextlib.ExitStack() as files:
                folder = files.enter_context(TemporaryDirectory(prefix="rlm-serve-"))
                inputs = await await_in_thread(read_inputs, self.signature, ask, Path(folder), kept)
                if conversation:
                    conversation.take(inputs, ask, files)
                callbacks = [*dspy.settings.callbacks, told]
                with dspy.context(callbacks=callbacks, disable_history=True, trace=[]):  # both would grow
                    prediction: dspy.Prediction = await program.acall(**inputs)
        except asyncio.CancelledError:
            end = "cancelled"
            raise
        except Exception as error:  # noqa: BLE001 (whatever a program raises becomes a response)
            refusal = self.as_http(error)
            end = "refused" if refusal.status_code < 500 else "failed"  # noqa: PLR2004 (the server's own)
            raise refusal from None
        else:
            end = told.stop or "ended"
            outputs = {name: prediction.get(name) for name in self.signature.output_fields}
            return Finished(outputs, end, told.spent, prediction)
        finally:
            self._metrics.count(end, time.monotonic() - began, told.spent)

    def _limited(
        self, wanted: Mapping[str, int | float], conversation: Conversation | None
    ) -> tuple[Any, list[str]]:
        """Return the program, a copy of it with lower limits, or a session; and the inputs that this has.

        Raises:
            InvalidInputs: If there is no limit of a name, or a value is out of its range.
        """
        if not wanted and not conversation:
            return self.program, []
        program = conversation.rlm if conversation else self.program.deepcopy()
        of = zip(self.program.named_sub_modules(RLM), program.named_sub_modules(RLM), strict=True)
        for (_, own), (_, rlm) in of:
            rlm.limits = lowered(own.limits, wanted)
        return (conversation.session, conversation.known) if conversation else (program, [])

    def as_http(self, error: Exception) -> HTTPException:
        """Return an error of a run as a response, without secrets; what only the operator may know is logged."""
        if isinstance(error, HTTPException):
            return error
        told = safe_message(error, *lms_of(self.program))
        if isinstance(error, InvalidInputs | LimitExceeded):
            return HTTPException(400, told)
        if isinstance(error, dspy.LMError):
            return HTTPException(502, f"The model of the program failed: {type(error).__name__}: {told}", _PAID)
        _logger.error("A run failed: %s: %s", type(error).__name__, told)
        name = type(error).__name__
        return HTTPException(500, f"The run failed: {name}. The log of the server says more.", _PAID)


def lowered(limits: Limits, wanted: Mapping[str, int | float]) -> Limits:
    """Return limits with those that a client asks for, where they are lower.

    Raises:
        InvalidInputs: If there is no limit of a name, or a value is out of its range.
    """
    try:
        asked = replace(limits, **wanted)  # type: ignore[arg-type]  # it checks names and ranges
    except (TypeError, ValueError) as error:
        raise InvalidInputs(f"limits: {error}") from error
    kept = {name: getattr(limits, name) for name in wanted}
    lower = {name: value for name, value in kept.items() if value is not None and value < wanted[name]}
    return replace(asked, **lower)


async def while_connected(receive: Receive, work: Coroutine[None, None, None]) -> None:
    """Await the work for a request whose body was read; cancel it when the client hangs up.

    Raises:
        ClientGone: If the client hung up.
    """
    running, gone = asyncio.ensure_future(work), asyncio.ensure_future(receive())
    try:
        await asyncio.wait({running, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            raise ClientGone
        running.result()
    finally:
        running.cancel()
        gone.cancel()
        await asyncio.wait({running, gone})


class ClientGone(Exception):  # noqa: N818 (what happened)
    """The client of a request hung up."""
