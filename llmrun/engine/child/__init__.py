"""What runs in the child process, beside llama.cpp."""
