"""Writes the messages of a turn and of `llm_query`, and reads replies that follow no format."""
