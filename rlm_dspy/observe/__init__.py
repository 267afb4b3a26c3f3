"""Shows and stores runs: record, event log, replay, console and HTML report."""
