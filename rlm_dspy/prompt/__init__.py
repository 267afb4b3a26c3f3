"""How the conversation is written and replies are read."""
