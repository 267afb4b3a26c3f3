"""Tables as inputs: `table` opens them, `view` is the object in the REPL. `isolated/table.py` reads the files."""

from rlm_dspy.inputs.tables.table import KINDS, Table, about_table

__all__ = ["KINDS", "Table", "about_table"]
