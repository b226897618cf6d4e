"""The command line: a command translates what was typed, calls, and shows.

typer and rich live here and nowhere else.
"""
