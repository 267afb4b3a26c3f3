"""Groups and describes the sub-calls of a turn for the turns section of a report."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rlm_dspy.coverage.text_match import merged
from rlm_dspy.report.coverage_shares import chars_of
from rlm_dspy.report.formatting import used
from rlm_dspy.text import seconds, share
from rlm_dspy.trajectory import Step

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rlm_dspy.trajectory import SubCall


def about(part: Step | SubCall, sizes: dict[str, int]) -> str:
    """Return when a turn or a sub-call ran, what it used, and which parts of the inputs it read, printed or sent.

    Args:
        part: The turn or sub-call.
        sizes: The characters of the run's inputs.
    """
    facts = (f"at {seconds(part.started)}", f"took {seconds(part.seconds)}", used(part.spent))
    looked_at = _shares(part, sizes) if isinstance(part, Step) else _sent(part)
    return " · ".join(filter(None, (*facts, *looked_at)))


def _shares(step: Step, sizes: dict[str, int]) -> Iterator[str]:
    sent = [span for call in step.calls for span in call.sent]
    for use, spans in {"read": step.read, "printed": step.shown, "sent": sent}.items():
        for name, chars in sizes.items():
            if chars and (part := chars_of(merged(spans, None), name)):
                yield f"{use} {share(part / chars)} of {name}"


def _sent(call: SubCall) -> Iterator[str]:
    for name in dict.fromkeys(name for name, _, _ in call.sent):
        yield f"sent {chars_of(call.sent, name):,} characters of {name}"


def grouped(calls: Sequence[SubCall]) -> list[list[SubCall]]:
    """Return the calls of each batch as a group; consecutive single calls of one name are a group too."""
    groups: list[list[SubCall]] = []
    for batch in (list(batch) for _, batch in groupby(calls, key=lambda call: call.batch)):
        in_a_row = groups and len(batch) == 1 and groups[-1][-1].name == batch[0].name
        if in_a_row and len({call.batch for call in groups[-1]}) == len(groups[-1]):
            groups[-1] += batch
        else:
            groups.append(batch)
    return groups


def lasted(calls: Sequence[SubCall]) -> float:
    """Return the seconds from the first start to the last end."""
    return max(call.started + call.seconds for call in calls) - min(call.started for call in calls)
