"""This machine's devices lent to others, over llama.cpp's RPC."""
