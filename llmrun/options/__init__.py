"""What can be asked: options, their ranges, how they are spelled, and the file that keeps defaults."""
