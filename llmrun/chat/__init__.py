"""Conversations: what the model is told, where they are kept, how they are written down."""
