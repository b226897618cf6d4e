"""The loop of a chat and its commands."""
