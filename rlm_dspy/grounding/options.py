"""Defines `Grounding`: what a run does so that its answer rests on its inputs."""

from __future__ import annotations

from dataclasses import dataclass

from rlm_dspy.errors import briefly_shown
from rlm_dspy.limits import OptionGroup


@dataclass(frozen=True, kw_only=True)
class Grounding(OptionGroup):
    """What a run does so that its answer rests on its inputs.

    Raises:
        TypeError: If there is no option of a name; the message names the closest one.
        ValueError: If `warn_below` is not a share from 0 to 1.
    """

    sources: bool = True
    """Whether to find the places in the inputs that the answer came from: `prediction.sources`."""
    warn_below: float | None = None
    """Refuse a SUBMIT once if a smaller share of the inputs was read by code, printed or sent to sub-models.

    The refusal tells the model the share; the next SUBMIT is accepted. Code that names an input without a constant
    slice reads it whole: a search through all of it counts. None never refuses.
    """

    @briefly_shown()
    def __post_init__(self) -> None:
        share = self.warn_below
        if share is None:
            return
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise ValueError(f"warn_below must be a share above 0 and up to 1, or None, not {share!r}.")
