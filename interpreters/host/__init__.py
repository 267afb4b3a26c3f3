"""Manages a confined worker from the host: its process, session, input values and tool calls."""
