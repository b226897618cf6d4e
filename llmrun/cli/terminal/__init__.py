"""What is drawn and what is typed."""
