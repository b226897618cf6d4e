"""The fastest settings for a model on this machine, found by measuring it."""
