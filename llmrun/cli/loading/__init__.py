"""A model's name to a loaded model, with a bar while it comes."""
