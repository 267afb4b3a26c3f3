"""Tables as inputs: `table` opens them, `script` reads files in another process, `view` is what code finds."""

from rlm_dspy.inputs.tables.table import KINDS, Table, about_table

__all__ = ["KINDS", "Table", "about_table"]
