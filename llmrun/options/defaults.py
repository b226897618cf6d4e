"""Numbers that both sides of the engine hold to. No imports: the engine's child takes them from here at its start."""

COMFORTABLE_CTX = 4096
"""Tokens of context for a request that bounds neither context nor answer, as the neighbours have it; and the fewest
that a context as long as memory allows is cut to before layers are."""
SMALL_MODEL_BYTES = 48 << 20
"""Of weights: steps of smaller models take less than a millisecond, so nothing is measured, kept or guessed for them
unless it is asked for."""
MOST_TUNE_S = 3600
"""Seconds that `tune` may measure for."""
