"""Interpreters, which run the model's code.

`PythonInterpreter`, the default, runs it in a confined process; `LocalPythonInterpreter` in this one, unprotected;
`ScriptedInterpreter` does not run it. `doctor` reports what this system can enforce.
"""

from __future__ import annotations

from rlm_dspy.interpreters.base import CellError, CellUndone, Submission, TakesObjects
from rlm_dspy.interpreters.confinement.limits import WorkerLimits
from rlm_dspy.interpreters.confinement_policy import ConfinementPolicy
from rlm_dspy.interpreters.diagnosis import Diagnosis, doctor, probe, render
from rlm_dspy.interpreters.host.deadlines import CellLimits
from rlm_dspy.interpreters.host.input_transfer import CannotCross
from rlm_dspy.interpreters.host.servers import CannotConfine
from rlm_dspy.interpreters.local import LocalPythonInterpreter
from rlm_dspy.interpreters.python import PythonInterpreter
from rlm_dspy.interpreters.scripted import ScriptedInterpreter

__all__ = [
    "CannotConfine",
    "CannotCross",
    "CellError",
    "CellLimits",
    "CellUndone",
    "ConfinementPolicy",
    "Diagnosis",
    "LocalPythonInterpreter",
    "PythonInterpreter",
    "ScriptedInterpreter",
    "Submission",
    "TakesObjects",
    "WorkerLimits",
    "doctor",
    "probe",
    "render",
]
