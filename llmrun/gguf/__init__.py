"""What a GGUF file says: read strictly, checked, written for tests and dry runs."""
