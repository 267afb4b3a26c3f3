"""Reads an answer from the trajectory of a run that did not submit one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy.budget.lm_info import text_of
from rlm_dspy.budget.window_errors import is_too_long
from rlm_dspy.errors import LimitExceeded, ReplyCut
from rlm_dspy.loop.hints import is_another_turn, prints
from rlm_dspy.prompt.free_form_outputs import as_submit, outputs_in_words, read_fields, some_outputs
from rlm_dspy.repl.coercion import TOO_DEEP
from rlm_dspy.repl.value_codec import without_media_marks
from rlm_dspy.replies.native_calls import with_calls
from rlm_dspy.replies.reply_parser import read_reply
from rlm_dspy.streaming.delivery import outputs_heard
from rlm_dspy.text import clip, counted, cut, logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rlm_dspy.concurrency.port import Port
    from rlm_dspy.loop.run_state import Run
    from rlm_dspy.report.representation import RunPrediction

_WHY_CHARS = 200
_LEAST_TRANSCRIPT_CHARS = 400
"""A shorter transcript is not shortened further."""
_INSTRUCTIONS_PART = 4
"""The user's instructions fill at most 1/_INSTRUCTIONS_PART of the messages."""
_LEAST_SHARE = 0.4
"""If less of the messages is left for the transcript, the types of the outputs are told in short."""
_Outputs = dict[str, tuple[Any, Any]]
_logger = logger()


async def extract(rlm: dspy.Module, port: Port, run: Run) -> RunPrediction:
    """Read the answer from the trajectory, with a temporary predictor that optimizers do not see."""
    await port.run(run.repl.collect_files)
    turns = counted(sum(step.kind != "folded" for step in run.steps), "turn")
    _logger.warning("RLM: no SUBMIT in %s; reading the answer from the trajectory.", turns)
    values: dict[str, Any] = {}
    how, replies = "Read from the trajectory after the last turn.", list[Any]()
    try:
        values, problems = await _read_transcript(rlm, port, run, replies)
    except (dspy.AdapterParseError, dspy.LMError, LimitExceeded, ReplyCut, *TOO_DEEP) as error:
        words = _answers(run, replies)
        if found := outputs_in_words(run.signature, words):
            return await _reviewed(port, run, found, f"{how} {error}" if isinstance(error, ReplyCut) else how)
        if isinstance(error, dspy.LMError) and not is_too_long(error):
            raise
        said = " ".join(str(error).split()) or type(error).__name__
        values, problems = some_outputs(run.signature, words), [clip(said, _WHY_CHARS).rstrip(".")]
        _logger.warning("RLM: no answer could be read from the trajectory: %s", problems[0])
    if problems:
        why = f"No SUBMIT: {run.budget.reason}. No answer could be read from the trajectory: {problems[0]}."
        return run.finish("unanswered", values, why)
    return await _reviewed(port, run, values, how)


async def _reviewed(port: Port, run: Run, values: dict[str, Any], how: str) -> RunPrediction:
    """Return the prediction of an answer that was read, unless `on_submit` refuses it."""
    complaint = await run.reviewer.answer(port, run.stop_code, values)
    if complaint is None:
        return run.finish("extracted", values, how)
    return run.finish("unanswered", {}, f"The answer read from the trajectory was refused: {complaint}")


def _answers(run: Run, replies: list[Any]) -> list[list[str]]:
    """Return the replies that are not another turn, as outputs; for code that prints a literal, its value."""
    answers = []
    for outputs in replies:
        first = outputs[0] if isinstance(outputs, list) and outputs else None
        said = with_calls(first) if isinstance(first, dict) else text_of(outputs)
        code = read_reply(said).code
        submits = as_submit(run.signature, code)
        if not is_another_turn(code, run.steps, run.inputs) and (submits or not prints(code)):
            answers.append([submits or said])
    return answers


async def _read_transcript(
    rlm: dspy.Module, port: Port, run: Run, replies: list[Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return the result of `read_fields` for the model's reply; halve a transcript that is too long."""
    most, outputs, in_short = run.conversation.most_chars, _outputs_of(run.signature), _outputs_in_short(run)
    reader = dspy.Predict(_extract_signature(run.signature, outputs, most))
    if _room_for_transcript(reader.signature, most) < _LEAST_SHARE * most < math.inf:
        outputs = in_short
        reader.signature = _extract_signature(run.signature, outputs, most)
    reader.lm = run.lm
    transcript = run.conversation.transcript(_room_for_transcript(reader.signature, most))
    settings = outputs_heard(rlm, reader)
    while True:
        try:
            with (
                run.metered("extract", keeper=run.budget, input_tokens=run.budget.extraction_tokens) as meter,
                dspy.context(trace=None, **settings),
                run.budget.in_time(meter),
            ):
                found = await port.predict(reader, run.budget.seconds_left(), repl_session=transcript)
            answers, fields = _answers(run, meter.outputs), dict(found.items())
            if meter.outputs and not answers and not any(value is not None for value in fields.values()):
                return {}, ["the reply is code for another turn"]
            values, problems = read_fields(run.signature, fields, answers)
            return without_media_marks(values), problems
        except dspy.AdapterParseError:
            if not (settings := _unstreamed_fallback(settings)):
                raise
        except dspy.LMError as error:
            if not is_too_long(error) or (outputs is in_short and len(transcript) < _LEAST_TRANSCRIPT_CHARS):
                raise
            sent, room = len(transcript) + len(reader.signature.instructions), len(transcript) // 2
            outputs = in_short
            reader.signature = _extract_signature(run.signature, outputs, min(most, sent / 2))
            transcript = cut(run.conversation.transcript(room), room)
        finally:
            replies += meter.outputs


def _unstreamed_fallback(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in which the outputs are asked for as JSON, heard by nobody.

    DSPy's ChatAdapter does that itself, unless somebody heard a part of the reply. Empty if it was done, or the
    adapter has no such fallback.
    """
    adapter = dspy.settings.adapter or dspy.ChatAdapter()
    falls_back = isinstance(adapter, dspy.ChatAdapter) and adapter.use_json_adapter_fallback
    if "stream_listeners" not in settings or isinstance(adapter, dspy.JSONAdapter) or not falls_back:
        return {}
    return {"adapter": dspy.JSONAdapter(), "send_stream": None}


def _outputs_of(signature: type[dspy.Signature]) -> _Outputs:
    return {name: (field.annotation, field) for name, field in signature.output_fields.items()}


def _outputs_in_short(run: Run) -> _Outputs:
    """Return the outputs as texts, with the types as the first message has them: schemas of models are long."""
    outputs = run.environment.outputs
    descriptions = {each.name: f"{each.type}, as JSON unless it is text. {each.note}" for each in outputs}
    return {name: (str, dspy.OutputField(desc=desc.rstrip())) for name, desc in descriptions.items()}


def _extract_signature(signature: type[dspy.Signature], outputs: _Outputs, most_chars: float = math.inf) -> Any:
    """Return the signature that reads a user's outputs from the transcript of a session.

    Args:
        signature: The user's.
        outputs: The types and fields of its outputs.
        most_chars: The maximum length of the messages.
    """
    own = signature.instructions
    task = cut(own, int(min(len(own), most_chars / _INSTRUCTIONS_PART)))
    instructions = (
        f"{task}\n\nA Python REPL session worked on this and has ended. "
        "Give the outputs from what it found. If it found nothing certain, give your best guess."
    )
    transcript = dspy.InputField(desc="the task, then the code and its output")
    return dspy.Signature({"repl_session": (str, transcript), **outputs}, instructions)


def _room_for_transcript(extract: type[dspy.Signature], most_chars: float) -> float:
    """Return the characters that a transcript may have in messages of at most `most_chars`."""
    if math.isinf(most_chars):
        return most_chars
    adapter = dspy.settings.adapter or dspy.ChatAdapter()
    messages = adapter.format(extract, [], {"repl_session": ""})
    used = sum(len(str(message["content"])) for message in messages)
    return max(_LEAST_TRANSCRIPT_CHARS, most_chars - used)
