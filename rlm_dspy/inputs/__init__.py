"""Long texts and other inputs: the values that the REPL binds for them, and their descriptions for the model."""

from rlm_dspy.inputs.description import Variable, about, describe, plain
from rlm_dspy.inputs.files import Files
from rlm_dspy.inputs.host_input import HostInput
from rlm_dspy.inputs.media import MEDIA
from rlm_dspy.inputs.opening import opened
from rlm_dspy.inputs.records import Record, Row
from rlm_dspy.inputs.tables import Table
from rlm_dspy.inputs.text import Text

__all__ = [
    "MEDIA",
    "Files",
    "HostInput",
    "Record",
    "Row",
    "Table",
    "Text",
    "Variable",
    "about",
    "describe",
    "opened",
    "plain",
]
