"""Serves models over HTTP, in the forms that clients know."""
