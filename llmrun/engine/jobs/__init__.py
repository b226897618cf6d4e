"""What else than answers a child is asked for: quantizing, perplexity, the roofline."""
