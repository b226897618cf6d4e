"""Measuring: what is run, the record of it, what is made of records."""
