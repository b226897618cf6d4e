"""The command line: a command translates what was typed, calls, and shows.

Rich, and Typer for completion in the shells, live here and nowhere else.
"""
