"""Builds the request that reads an answer from the trajectory of a run that did not submit one."""

from __future__ import annotations

import math
from typing import Any

import dspy

from rlm_dspy.text import cut

LEAST_TRANSCRIPT_CHARS = 400
"""A shorter transcript is not shortened further."""
_INSTRUCTIONS_PART = 4
"""The user's instructions fill at most 1/_INSTRUCTIONS_PART of the messages."""


def extract_signature(signature: type[dspy.Signature], most_chars: float = math.inf) -> Any:
    """Return the signature that reads a user's outputs from the transcript of a session.

    Args:
        signature: The user's.
        most_chars: The maximum length of the messages.
    """
    told = signature.instructions
    task = cut(told, int(min(len(told), most_chars / _INSTRUCTIONS_PART)))
    instructions = (
        f"{task}\n\nA Python REPL session worked on this and has ended. "
        "Give the outputs from what it found. If it found nothing certain, give your best guess."
    )
    outputs = {name: (field.annotation, field) for name, field in signature.output_fields.items()}
    transcript = dspy.InputField(desc="the task, then the code and its output")
    return dspy.Signature({"repl_session": (str, transcript), **outputs}, instructions)


def room_for_transcript(extract: type[dspy.Signature], most_chars: float) -> float:
    """Return the characters that a transcript may have in messages of at most `most_chars`."""
    if math.isinf(most_chars):
        return most_chars
    adapter = dspy.settings.adapter or dspy.ChatAdapter()
    messages = adapter.format(extract, [], {"repl_session": ""})
    used = sum(len(str(message["content"])) for message in messages)
    return max(LEAST_TRANSCRIPT_CHARS, most_chars - used)
