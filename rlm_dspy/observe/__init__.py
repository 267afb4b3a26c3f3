"""Shows and stores runs while they happen, and replays them: console, progress, event log."""
