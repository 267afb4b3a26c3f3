"""The loop: the module, a run, a turn, compaction of the conversation, validation of arguments."""
