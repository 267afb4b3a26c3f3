"""What every interpreter of ours gives beyond DSPy's `CodeInterpreter` protocol."""

from __future__ import annotations

from typing import Any

import dspy


class CellError(dspy.CodeExecutionError):
    """The model's code raised; the session lives on.

    `str(error)` is what a model should read: the output printed before the error, then a traceback of the
    model's own lines. Modules that know only DSPy's protocol show just that.

    Attributes:
        output: What the cell printed before it raised; empty if nothing.
        traceback: The traceback, the model's own lines only, ending in `Type: message`.
    """

    def __init__(self, traceback: str, output: str = "") -> None:
        self.output = output
        self.traceback = traceback
        super().__init__(f"{output.rstrip()}\n{traceback}" if output.strip() else traceback)


class Submission(dspy.FinalOutput):
    """The values of a `SUBMIT(...)`, with what the cell printed before it.

    Attributes:
        output: The submitted values by field name.
        printed: What the cell printed before `SUBMIT`; empty if nothing.
    """

    def __init__(self, output: dict[str, Any], printed: str = "") -> None:
        super().__init__(output)
        self.printed = printed


class TakesObjects:
    """Marks an interpreter that binds Python objects as variables, not only JSON-like data.

    Attributes:
        takes_text: Whether it also takes an `rlm_dspy.Text` as it is (and binds a `str`), so that a file need
            not be read by the host.
    """

    takes_text = False
