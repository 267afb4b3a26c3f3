"""What a person or a program reads of a run: record, event log, replay, console, report."""
