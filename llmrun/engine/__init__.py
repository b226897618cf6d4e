"""llama.cpp in a process of its own: `engine` is the side that the rest of llmrun sees, `child/` the other.

The engine is the only door to llama_cpp. What is not timed: the pipe between the two sides (time stamps are taken in
the child, on the clock that both share).
"""
