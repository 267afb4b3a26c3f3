"""Wraps a function from prompt to answer as a `dspy.LM`."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any, Self

import dspy
from dspy.lm15 import Message, Request, Response, TextPart, Usage, response_to_events

from rlm_dspy import signatures

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


def as_lm(given: dspy.BaseLM | Callable[[str], Any] | None) -> Any:
    """Return the LM, or wrap a function from prompt to answer as one.

    Raises:
        TypeError: If it is neither.
    """
    if given is None or isinstance(given, dspy.BaseLM):
        return given
    if isinstance(given, type) or not callable(given):
        raise TypeError(
            "sub_lm must be a dspy.LM, e.g. dspy.LM('openai/gpt-5-mini'), or a function that takes a prompt, not "
            f"{given!r}."
        )
    return FunctionLM(given)


class PythonLM(dspy.LM):
    """An LM whose replies are made in this process. It caches nothing; a copy is the same object.

    Args:
        model: Its name.
        complete: Answers a request.
        complete_async: Answers an awaited request.
    """

    def __init__(
        self,
        model: str,
        complete: Callable[[Request], Response],
        complete_async: Callable[[Request], Awaitable[Response]],
    ) -> None:
        engine, async_engine = _Engine(complete), _AsyncEngine(complete_async)
        super().__init__(model, engine=engine, async_engine=async_engine, cache=False, num_retries=0)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return the same object: programs that hold it are copied."""
        return self


class _Engine:
    def __init__(self, complete: Callable[[Request], Response]) -> None:
        self.complete = complete

    def stream(self, request: Request) -> Any:
        """Return the answer as the events of a stream, all at once."""
        return response_to_events(self.complete(request))


class _AsyncEngine:
    def __init__(self, complete: Callable[[Request], Awaitable[Response]]) -> None:
        self.complete = complete

    async def stream(self, request: Request) -> AsyncIterator[Any]:
        """Yield the answer as the events of a stream, all at once."""
        for event in response_to_events(await self.complete(request)):
            yield event


class FunctionLM(PythonLM):
    """An LM that calls a function with the prompt (a str), as `dspy.RLM` does with a `sub_lm`.

    `llm_query(prompt)` calls it with just the prompt; a request of several messages calls it with their texts,
    separated by blank lines. Its calls count like those of any LM. It reports no price, and no tokens unless it
    returns a `dspy.lm15.Response` with usage.

    Args:
        function: Returns the answer, sync or async: a str, a list whose first item counts (a str, or a dict with
            `text`), or a `dspy.lm15.Response`.
    """

    def __init__(self, function: Callable[[str], Any]) -> None:
        self.function = function
        name = getattr(function, "__name__", type(function).__name__)
        super().__init__(f"function/{name}", self._complete, self._complete_async)

    def _complete(self, request: Request) -> Response:
        answer = self.function(_prompt(request))
        if inspect.isawaitable(answer):
            raise TypeError(
                "An async function as sub_lm answers under `await rlm.acall(...)`; give a plain one here."
            )
        return _response(request, answer)

    async def _complete_async(self, request: Request) -> Response:
        answer = await asyncio.to_thread(self.function, _prompt(request))
        return _response(request, await answer if inspect.isawaitable(answer) else answer)


def _prompt(request: Request) -> str:
    """Return the request as one text, without the default instructions of `llm_query`."""
    system = request.system if isinstance(request.system, str) else "".join(p.text for p in request.system or [])
    if any(not isinstance(part, TextPart) for message in request.messages for part in message.parts):
        raise ValueError("A function as sub_lm takes text only; images, sounds and files need a dspy.LM.")
    texts = [message.text or "" for message in request.messages]
    plain = system.strip() in ("", signatures.Query.instructions.strip())
    return "\n\n".join(texts if plain else [system, *texts])


def _response(request: Request, answer: str | list[str | dict[str, str]] | Response) -> Response:
    if isinstance(answer, Response):
        return answer
    text = answer[0] if isinstance(answer, list) and answer else answer
    text = text.get("text") if isinstance(text, dict) else text
    if not isinstance(text, str):
        raise TypeError(f"sub_lm must return a str, a list of texts or a dspy.lm15.Response, not {answer!r:.100}.")
    message = Message.assistant([TextPart(text)])
    return Response(id=None, model=request.model, message=message, finish_reason="stop", usage=Usage())
