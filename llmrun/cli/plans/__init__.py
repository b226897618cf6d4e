"""What `llmrun plan` and `llmrun probe` show."""
