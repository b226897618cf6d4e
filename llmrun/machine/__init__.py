"""This machine: its memory, cores and GPUs, what they can do, and what they do while a model runs."""
