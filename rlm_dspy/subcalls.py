"""The host's side of sub-calls: what the code in the REPL asks for is run here, by named predictors."""

from __future__ import annotations

import contextvars
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy.errors import RLMError
from rlm_dspy.metering import metered

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_dspy.limits import Ledger

Answer = dict[str, Any]
"""`{"value": ...}`, or `{"error": what went wrong, "kind": the error's type}`."""


class PromptAdapter(dspy.Adapter):
    """Sends the prompt as it was written and takes the whole reply, as a direct call would."""

    def format(
        self, signature: type[dspy.Signature], demos: list[dict[str, Any]], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Return the instructions as system message, demos as pairs, then the prompt."""
        messages = [{"role": "system", "content": signature.instructions}]
        for demo in demos:
            messages.append({"role": "user", "content": str(demo["prompt"])})
            messages.append({"role": "assistant", "content": str(demo["response"])})
        return [*messages, {"role": "user", "content": inputs["prompt"]}]

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        """Return the reply."""
        return {"response": completion.strip()}


_PROMPT_ADAPTER = PromptAdapter()


class Query(dspy.Predict):
    """The predictor behind `llm_query`: `prompt -> response`, without a format of its own."""

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Answer one prompt."""
        with dspy.context(adapter=_PROMPT_ADAPTER):
            return super().forward(**inputs)

    async def aforward(self, **inputs: Any) -> dspy.Prediction:
        """Answer one prompt."""
        with dspy.context(adapter=_PROMPT_ADAPTER):
            return await super().aforward(**inputs)


@dataclass(frozen=True)
class SubCalls:
    """Runs the sub-calls of one run: counted, concurrent, each failure an answer of its own.

    Attributes:
        predictors: The modules that may be called, by the name that code uses.
        lm: The LM they are called with; None leaves each its own.
        ledger: What the run may still spend.
    """

    predictors: dict[str, dspy.Module]
    lm: dspy.BaseLM | None
    ledger: Ledger

    def tool(self) -> Callable[[str, list[dict[str, Any]]], list[Answer]]:
        """Return the one function that the REPL reaches the host by."""

        def call(sub: str, items: list[dict[str, Any]]) -> list[Answer]:
            return self.call(sub, items)

        return call

    def call(self, name: str, items: list[dict[str, Any]]) -> list[Answer]:
        """Run one predictor on each item, at most `max_concurrency` at once.

        Returns:
            One answer an item, in order. An item that fails, or that the limits no longer allow, is an
            `error` answer; the others are kept.

        Raises:
            RLMError: If there is no predictor of that name.
        """
        if name not in self.predictors:
            raise RLMError(f"No sub-call named {name!r}; there are: {', '.join(sorted(self.predictors))}.")
        if len(items) == 1:
            return [self._one(name, items[0])]
        workers = max(1, min(self.ledger.limits.max_concurrency, len(items)))
        with ThreadPoolExecutor(workers, thread_name_prefix=f"rlm-{name}") as pool:
            waiting = [pool.submit(contextvars.copy_context().run, self._one, name, item) for item in items]
            return [future.result() for future in waiting]

    def _one(self, name: str, item: dict[str, Any]) -> Answer:
        given = {"lm": self.lm} if self.lm is not None else {}
        try:
            self.ledger.reserve()  # before the call: a failed call may be billed too
            with metered(self.ledger, name):
                prediction = self.predictors[name](**item, **given)
        except Exception as error:  # noqa: BLE001  # one failed item must not lose the paid ones beside it
            return {"error": f"{type(error).__name__}: {error}", "kind": type(error).__name__}
        return {"value": prediction.response}
