"""One module a command; they don't import each other."""
