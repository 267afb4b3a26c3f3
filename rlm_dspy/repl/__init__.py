"""The REPL of a run: its interpreter, its functions and tools, and the conversion of values."""
