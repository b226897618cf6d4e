"""Records as tables and documents, one writer for each format."""
