"""Conversations: what the model is given, where they are kept, how they become files."""
