"""What cells in the host's process set in their context, and what is told of their threads."""

from __future__ import annotations

import contextvars
import copy
import decimal
import pickle
import threading
from typing import TYPE_CHECKING, Any

import pytest

from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter

if TYPE_CHECKING:
    from collections.abc import Callable

ROUND = "import decimal\nstr(decimal.Decimal(1) / 3)"


def test_a_session_has_the_context_of_its_last_cell() -> None:
    """As in one process of its own: the precision of decimals would be 28 again without a word."""
    repl, other = LocalPythonInterpreter(), LocalPythonInterpreter()
    repl.execute("import decimal\ndecimal.getcontext().prec = 4")
    assert repl.execute(ROUND) == "0.3333"
    assert len(str(other.execute(ROUND))) == 30
    repl.execute("decimal.setcontext(decimal.Context(prec=2))")
    assert repl.execute(ROUND) == "0.33"


def test_a_cell_leaves_the_hosts_decimals_as_they_are() -> None:
    """Also if the host has used them before, so that cells find its own context."""
    decimal.getcontext().prec = 30
    LocalPythonInterpreter().execute("import decimal\ndecimal.getcontext().prec = 2")
    assert decimal.getcontext().prec == 30
    decimal.setcontext(decimal.Context())


def test_what_the_host_sets_between_cells_is_what_they_find() -> None:
    """Only what a cell has set itself lasts."""
    variable = contextvars.ContextVar("variable", default="none")
    repl = LocalPythonInterpreter()
    repl.execute("variable.get()", {"variable": variable})
    variable.set("host")
    assert repl.execute("variable.get()") == "host"


def test_an_error_of_a_thread_is_told_in_the_lines_of_its_cell() -> None:
    """Not with the files of the host, and not to the host's own hook for its threads."""
    code = "import threading\ndef work():\n    1 / 0\nt = threading.Thread(target=work)\nt.start()\nt.join()"
    told = str(LocalPythonInterpreter().execute(code))
    assert told.startswith("A thread ended with an error:\nTraceback")
    assert told.endswith("ZeroDivisionError: division by zero")
    assert threading.__file__ not in told


@pytest.mark.parametrize("made", [PythonInterpreter, LocalPythonInterpreter])
@pytest.mark.parametrize("form", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_session_is_not_copied(made: type[Any], form: Callable[[Any], Any]) -> None:
    """Two owners of one process would end it twice; the error names what can be passed on."""
    with pytest.raises(TypeError, match="pass its class"):
        form(made())
